"""ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum (F-measure), to the bit those of the rouge-score package."""

from typing import Any

import datasets
import evaluate

from tasks.evaluation.rouge_rows import NAMES, rouge_rows

DESCRIPTION = (
    "Mean F-measures (0-1) of the ROUGE family (Lin 2004), no stemming. "
    "ROUGE-Lsum takes each line as a sentence."
)
INPUTS = """
Args:
    predictions: list of str, one a row; one without a word (empty, or a lone full stop) scores 0.
    references: list of str.
Returns:
    rouge1, rouge2, rougeL, rougeLsum: float, 0-1: the plain mean of the rows.
    rows: name -> list of float; beside each F also `<name>_precision` and `<name>_recall`.
    statistics: name -> list of [score, 1]; the value is the quotient of their sums.
    library: the package that counted.
    notes: list of str: why it is not the fast one, where it is not.
"""


class Rouge(evaluate.Metric):
    """The ROUGE family."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Chin-Yew Lin. ROUGE: A Package for Automatic Evaluation of Summaries. 2004.",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        found = rouge_rows(predictions, references)
        rows: dict[str, list[float]] = {}
        for number, name in enumerate(NAMES):
            precision, recall, f = found.scores[:, number].T.tolist()
            rows |= {name: f, f"{name}_precision": precision, f"{name}_recall": recall}
        values: dict[str, Any] = {name: sum(rows[name]) / len(predictions) for name in NAMES}
        return {
            **values,
            "rows": rows,
            "statistics": {name: [[score, 1.0] for score in rows[name]] for name in NAMES},
            "library": found.library,
            "notes": [found.note] if found.note else [],
        }
