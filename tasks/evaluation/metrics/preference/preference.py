"""Share of held-out pairs whose better answer the model finds more likely than the worse one."""

from typing import Any

import datasets
import evaluate

DESCRIPTION = (
    "Share (0-1) of pairs whose better answer has the higher log-probability behind their prompt: of "
    "the whole answers, and of their means over tokens, which longer answers do not lose by being "
    "longer. A tie is half a pair. Rows that are no pair do not count."
)
INPUTS = """
Args:
    nll: list of float, one a row: the sum of -log p over the better answer's tokens.
    trained_tokens: list of int, at least 1 each: how many these are.
    rejected_nll: list of float or None: the same of the worse answer; None where there is none.
    rejected_tokens: list of int or None.
Returns:
    preference_accuracy, preference_accuracy_per_token: float, 0-1; NaN without a pair.
    rows: name -> list of 0.0, 0.5, 1.0, and None for rows that are no pair.
    statistics: name -> list of [score, 1] or [0, 0]; the value is the quotient of their sums.
"""


class Preference(evaluate.Metric):
    """Pairwise accuracy of log-probabilities."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "nll": datasets.Value("float64"),
                    "trained_tokens": datasets.Value("int64"),
                    "rejected_nll": datasets.Value("float64"),
                    "rejected_tokens": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self,
        nll: list[float],
        trained_tokens: list[int],
        rejected_nll: list[float | None],
        rejected_tokens: list[int | None],
    ) -> dict[str, Any]:
        whole: list[float | None] = []
        means: list[float | None] = []
        for better, length, worse, other in zip(
            nll, trained_tokens, rejected_nll, rejected_tokens, strict=True
        ):
            if worse is None or other is None:
                whole.append(None)
                means.append(None)
            else:
                whole.append(_won(better, worse))
                means.append(_won(better / length, worse / other))
        rows = {"preference_accuracy": whole, "preference_accuracy_per_token": means}
        statistics = {
            name: [[0.0, 0.0] if score is None else [score, 1.0] for score in scores]
            for name, scores in rows.items()
        }
        values = {name: _share(sums) for name, sums in statistics.items()}
        return {**values, "rows": rows, "statistics": statistics}


def _won(better: float, worse: float) -> float:
    """Of two negative log-probabilities the smaller one is of the likelier answer."""
    if better == worse:
        return 0.5
    # A number that is none has won nothing.
    return float(better < worse)


def _share(sums: list[list[float]]) -> float:
    pairs = sum(weight for _, weight in sums)
    return sum(score for score, _ in sums) / pairs if pairs else float("nan")
