"""Share of answers that say something and end by themselves."""

from typing import Any

import datasets
import evaluate

DESCRIPTION = (
    "Share (0-1) of answers that end with a stop token before the longest length allowed. One that ends "
    "before it has begun, an empty one, counts 0."
)
INPUTS = """
Args:
    predictions: list of str, one a row; an empty one scores 0.
    stopped: list of bool.
Returns:
    stop_rate: float, 0-1.
    rows: {"stop_rate": list of 0.0 and 1.0}.
    statistics: {"stop_rate": list of [score, 1]}; the value is the quotient of their sums.
"""


class StopRate(evaluate.Metric):
    """Share of answers that say something and end by themselves."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "stopped": datasets.Value("bool")}
            ),
        )

    def _compute(self, predictions: list[str], stopped: list[bool]) -> dict[str, Any]:
        rows = [
            float(ended and bool(text.strip()))
            for text, ended in zip(predictions, stopped, strict=True)
        ]
        return {
            "stop_rate": sum(rows) / len(rows),
            "rows": {"stop_rate": rows},
            "statistics": {"stop_rate": [[score, 1.0] for score in rows]},
        }
