"""How near answers are to their references in meaning, by a sentence-embedding model."""

from typing import Any

import datasets
import evaluate

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
        statistics = [[0.0, 0.0] if score is None else [score, 1.0] for score in similarity]
        counted = sum(weight for _, weight in statistics)
        total = sum(score for score, _ in statistics)
        return {
            "embedding_similarity": total / counted if counted else float("nan"),
            "rows": {"embedding_similarity": similarity},
            "statistics": {"embedding_similarity": statistics},
        }
