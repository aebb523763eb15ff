"""How much answers repeat themselves."""

from typing import Any

import datasets
import evaluate

ORDER = 4
DESCRIPTION = (
    "Mean share (0-1) of an answer's runs of four words that occurred in it before: a model that is "
    "stuck in a loop comes near 1. Lower is better; an answer of three words or less repeats nothing. An "
    "empty one counts 1, as the worst: a model that says nothing has not been cured of repeating itself."
)
INPUTS = """
Args:
    predictions: list of str, one a row; an empty one scores 1.
    references: list of str, not looked at.
Returns:
    repetition: float, 0-1.
    rows: {"repetition": list of float}.
    statistics: {"repetition": list of [share, 1]}; the value is the quotient of their sums.
"""


class Repetition(evaluate.Metric):
    """Share of repeated runs of four words."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        rows = [_repeated(text.split()) for text in predictions]
        return {
            "repetition": sum(rows) / len(rows),
            "rows": {"repetition": rows},
            "statistics": {"repetition": [[share, 1.0] for share in rows]},
        }


def _repeated(words: list[str]) -> float:
    if not words:
        return 1.0
    runs = [tuple(words[n : n + ORDER]) for n in range(len(words) - ORDER + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
