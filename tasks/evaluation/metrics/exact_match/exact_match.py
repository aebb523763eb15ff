"""Share of answers that equal the reference, white space at both ends aside."""

from typing import Any

import datasets
import evaluate

DESCRIPTION = "Share (0-1) of predictions equal to their reference after stripping white space."
INPUTS = """
Args:
    predictions: list of str, one a row; an empty one counts as an answer.
    references: list of str.
Returns:
    exact_match: float, 0-1.
    rows: {"exact_match": list of 0.0 and 1.0}.
    statistics: {"exact_match": list of [score, 1]}; the value is the quotient of their sums.
"""


class ExactMatch(evaluate.Metric):
    """Exact match after stripping white space."""

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
        rows = [
            float(prediction.strip() == reference.strip())
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        return {
            "exact_match": sum(rows) / len(rows),
            "rows": {"exact_match": rows},
            "statistics": {"exact_match": [[score, 1.0] for score in rows]},
        }
