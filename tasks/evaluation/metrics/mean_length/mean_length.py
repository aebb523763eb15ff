"""Mean length of answers in tokens."""

from typing import Any

import datasets
import evaluate

DESCRIPTION = "Mean number of generated tokens, the stop token not counted."
INPUTS = """
Args:
    tokens: list of int, one a row.
Returns:
    mean_length: float, in tokens.
    rows: {"mean_length": list of float}.
    statistics: {"mean_length": list of [tokens, 1]}; the value is the quotient of their sums.
"""


class MeanLength(evaluate.Metric):
    """Mean length in tokens."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"tokens": datasets.Value("int64")}),
        )

    def _compute(self, tokens: list[int]) -> dict[str, Any]:
        rows = [float(value) for value in tokens]
        return {
            "mean_length": sum(rows) / len(rows),
            "rows": {"mean_length": rows},
            "statistics": {"mean_length": [[count, 1.0] for count in rows]},
        }
