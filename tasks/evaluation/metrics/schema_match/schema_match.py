"""Share of answers that are JSON as a schema wants it."""

import json
from typing import Any

import datasets
import evaluate
import jsonschema
import referencing

from tasks.evaluation.json_schemas import schema_mistake

DESCRIPTION = (
    "Share (0-1) of answers that are one JSON value by RFC 8259 and valid by the JSON Schema that the "
    "recipe names. References to other documents are not fetched."
)
INPUTS = """
Args:
    predictions: list of str, one a row; an empty one scores 0.
    references: list of str, not looked at.
    schema: the JSON Schema, as a Python value.
Returns:
    schema_match: float, 0-1.
    rows: {"schema_match": list of 0.0 and 1.0}.
    statistics: {"schema_match": list of [score, 1]}; the value is the quotient of their sums.
Raises:
    ValueError when the schema is none, or refers to another document.
"""


class SchemaMatch(evaluate.Metric):
    """Share of answers that are valid by the schema."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self, predictions: list[str], references: list[str], schema: Any
    ) -> dict[str, Any]:
        if mistake := schema_mistake(schema):
            raise ValueError(f"evaluation.json_schema {mistake}")
        kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        # An empty registry: nothing is asked of the network, whatever the schema refers to.
        validator = kind(schema, registry=referencing.Registry())
        rows = [float(_fits(validator, text)) for text in predictions]
        return {
            "schema_match": sum(rows) / len(rows),
            "rows": {"schema_match": rows},
            "statistics": {"schema_match": [[score, 1.0] for score in rows]},
        }


def _fits(validator: Any, text: str) -> bool:
    try:
        value = json.loads(text, parse_constant=_refuse)
        return bool(validator.is_valid(value))
    except (ValueError, RecursionError):
        return False


def _refuse(name: str) -> None:
    raise ValueError(name)
