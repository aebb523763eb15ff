"""How varied each answer's words are: distinct-1 and distinct-2."""

from typing import Any

import datasets
import evaluate

ORDERS = (1, 2)
DESCRIPTION = (
    "Mean over answers of the share (0-1) of different words, and of different pairs of words, among all "
    "of the answer's (Li et al. 2016, within each answer: over all answers together the share would fall "
    "with the number of rows)."
)
INPUTS = """
Args:
    predictions: list of str, one a row; one without a word (distinct_2: without a pair) scores 0.
    references: list of str, not looked at.
Returns:
    distinct_1, distinct_2: float, 0-1.
    rows: name -> list of float.
    statistics: name -> list of [share, 1]; the value is the quotient of their sums.
"""


class Distinct(evaluate.Metric):
    """Distinct-1 and distinct-2."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Li et al. A Diversity-Promoting Objective Function for Neural Conversation Models. 2016.",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        words = [text.split() for text in predictions]
        rows = {f"distinct_{n}": [_share(one, n) for one in words] for n in ORDERS}
        values: dict[str, Any] = {name: sum(one) / len(one) for name, one in rows.items()}
        statistics = {name: [[share, 1.0] for share in one] for name, one in rows.items()}
        return {**values, "rows": rows, "statistics": statistics}


def _share(words: list[str], order: int) -> float:
    runs = [tuple(words[n : n + order]) for n in range(len(words) - order + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0
