"""How near answers are to their references in meaning, by a sentence-embedding model."""

from typing import Any

import datasets
import evaluate

from tasks.evaluation.measured import mean_of_measured

DESCRIPTION = (
    "Mean cosine (0-1; a negative one counts as 0) of the embeddings of answer and reference. The "
    "worker that held the model has measured it."
)
INPUTS = """
Args:
    similarity: list of float, 0-1, one a row; None where there is none.
Returns:
    embedding_similarity: float, 0-1; NaN where no row counts.
    rows: {"embedding_similarity": list of float or None}.
    statistics: {"embedding_similarity": list of [score, 1] or [0, 0]}; the value is the quotient of their sums.
"""


class EmbeddingSimilarity(evaluate.Metric):
    """The mean of what was measured elsewhere."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"similarity": datasets.Value("float64")}),
        )

    def _compute(self, similarity: list[float | None]) -> dict[str, Any]:
        return mean_of_measured("embedding_similarity", similarity)
