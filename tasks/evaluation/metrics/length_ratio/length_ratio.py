"""How long answers are, as a share of their references."""

from typing import Any

import datasets
import evaluate

DESCRIPTION = (
    "Words (runs without white space) of all answers, divided by those of all references: 1 where they "
    "are as long on the whole. Neither more nor less of it is better."
)
INPUTS = """
Args:
    predictions: list of str, one a row.
    references: list of str.
Returns:
    length_ratio: float from 0; NaN where no reference has a word.
    rows: {"length_ratio": list of float, None where the reference has no word}.
    statistics: {"length_ratio": list of [words, reference words]}; the value is the quotient of their
        sums.
"""


class LengthRatio(evaluate.Metric):
    """Words of answers by words of references."""

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
        counts = [
            [float(len(p.split())), float(len(r.split()))]
            for p, r in zip(predictions, references, strict=True)
        ]
        words, wanted = (sum(column) for column in zip(*counts, strict=True))
        return {
            "length_ratio": words / wanted if wanted else float("nan"),
            "rows": {
                "length_ratio": [mine / theirs if theirs else None for mine, theirs in counts]
            },
            "statistics": {"length_ratio": counts},
        }
