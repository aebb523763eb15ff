"""Accuracy and macro-F1 where the reference is a label."""

from typing import Any

import datasets
import evaluate

LARGEST = 256
DESCRIPTION = (
    "Share (0-1) of answers that are the right label, and the mean over labels of their F1. White space "
    "at both ends and case aside; an answer that is no label is wrong, and adds no label of its own."
)
INPUTS = """
Args:
    predictions: list of str, one a row; an empty one is wrong.
    references: list of str: at most 256 different labels.
Returns:
    accuracy, macro_f1: float, 0-1.
    rows: name -> list of 0.0 and 1.0 (whether the row is right, for both).
    statistics: accuracy: list of [score, 1]; macro_f1: list of counts, three a label: right answers,
        answers with it, references with it; the value follows from their sums.
Raises:
    ValueError when there are more labels.
"""


class Labels(evaluate.Metric):
    """Accuracy and macro-F1."""

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
        answers = [text.strip().casefold() for text in predictions]
        truth = [text.strip().casefold() for text in references]
        labels = {label: place for place, label in enumerate(sorted(set(truth)))}
        if len(labels) > LARGEST:
            raise ValueError(
                f"accuracy and macro_f1 are for labels: at most {LARGEST} different references, and "
                f"here are {len(labels):,}. Take them out of evaluation.metrics"
            )
        right = [float(a == t and a != "") for a, t in zip(answers, truth, strict=True)]
        counts: list[list[float]] = []
        for answer, label, score in zip(answers, truth, right, strict=True):
            row = [0.0] * (3 * len(labels))
            row[3 * labels[label]] = score
            if answer and answer in labels:
                row[3 * labels[answer] + 1] = 1.0
            row[3 * labels[label] + 2] = 1.0
            counts.append(row)
        sums = [sum(column) for column in zip(*counts, strict=True)]
        found = zip(sums[0::3], sums[1::3], sums[2::3], strict=True)
        scores = [2 * hits / (given + wanted) for hits, given, wanted in found]
        return {
            "accuracy": sum(right) / len(right),
            "macro_f1": sum(scores) / len(scores),
            "rows": {"accuracy": right, "macro_f1": right},
            "statistics": {"accuracy": [[score, 1.0] for score in right], "macro_f1": counts},
        }
