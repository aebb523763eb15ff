"""What another model thinks of the answers."""

from typing import Any

import datasets
import evaluate

from tasks.evaluation.measured import mean_of_measured

DESCRIPTION = (
    "Mean score (0-1) that the recipe's judge gave. Rows without a usable verdict on every "
    "model's answer do not count."
)
INPUTS = """
Args:
    verdicts: list of float, 0-1, one a row; None where there is none.
Returns:
    judge: float, 0-1; NaN where no row counts.
    rows: {"judge": list of float or None}.
    statistics: {"judge": list of [score, 1] or [0, 0]}; the value is the quotient of their sums.
"""


class Judge(evaluate.Metric):
    """The mean of what was measured elsewhere."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"verdicts": datasets.Value("float64")}),
        )

    def _compute(self, verdicts: list[float | None]) -> dict[str, Any]:
        return mean_of_measured("judge", verdicts)
