"""Share of answers that are JSON."""

import json
from typing import Any

import datasets
import evaluate

DESCRIPTION = (
    "Share (0-1) of answers that are one JSON value by RFC 8259, white space around it aside. Text or a "
    "code fence around it is no JSON, and neither are NaN and Infinity."
)
INPUTS = """
Args:
    predictions: list of str, one a row; an empty one scores 0.
    references: list of str, not looked at.
Returns:
    json_validity: float, 0-1.
    rows: {"json_validity": list of 0.0 and 1.0}.
    statistics: {"json_validity": list of [score, 1]}; the value is the quotient of their sums.
"""


class JsonValidity(evaluate.Metric):
    """Share of answers that are JSON."""

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
        rows = [float(_is_json(text)) for text in predictions]
        return {
            "json_validity": sum(rows) / len(rows),
            "rows": {"json_validity": rows},
            "statistics": {"json_validity": [[score, 1.0] for score in rows]},
        }


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> None:
    raise ValueError(name)
