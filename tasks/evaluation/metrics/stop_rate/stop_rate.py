"""Share of answers that end by themselves."""

from typing import Any

import datasets
import evaluate

DESCRIPTION = "Share (0-1) of answers that end with a stop token before the longest length allowed."
INPUTS = """
Args:
    stopped: list of bool, one a row.
Returns:
    stop_rate: float, 0-1.
    rows: {"stop_rate": list of 0.0 and 1.0}.
    statistics: {"stop_rate": list of [score, 1]}; the value is the quotient of their sums.
"""


class StopRate(evaluate.Metric):
    """Share of answers that end by themselves."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"stopped": datasets.Value("bool")}),
        )

    def _compute(self, stopped: list[bool]) -> dict[str, Any]:
        rows = [float(value) for value in stopped]
        return {
            "stop_rate": sum(rows) / len(rows),
            "rows": {"stop_rate": rows},
            "statistics": {"stop_rate": [[score, 1.0] for score in rows]},
        }
