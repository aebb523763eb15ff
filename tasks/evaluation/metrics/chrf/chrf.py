"""Corpus chrF by sacrebleu, on 0-1."""

from collections import Counter
from typing import Any

import datasets
import evaluate
from sacrebleu.metrics import CHRF

ORDER = 6
DESCRIPTION = (
    "Corpus chrF (0-1): sacrebleu's chrF2 divided by 100 (character n-grams up to 6, beta 2, no "
    "words). A row's score is its sentence chrF; the value is no mean of these."
)
INPUTS = """
Args:
    predictions: list of str, one a row; an empty one scores 0.
    references: list of str.
Returns:
    chrf: float, 0-1.
    rows: {"chrf": list of float}.
    statistics: {"chrf": list of 18 counts: for n = 1..6 the n-grams of the answer, of the reference,
        and those in both}; the value follows from their sums.
"""


class Chrf(evaluate.Metric):
    """Corpus chrF2."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Maja Popović. chrF: character n-gram F-score for automatic MT evaluation. 2015.",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        scorer = CHRF(char_order=ORDER)
        pairs = list(zip(predictions, references, strict=True))
        return {
            "chrf": scorer.corpus_score(predictions, [references]).score / 100,
            "rows": {"chrf": [scorer.sentence_score(p, [r]).score / 100 for p, r in pairs]},
            "statistics": {"chrf": [_counts(p, r) for p, r in pairs]},
        }


def _counts(prediction: str, reference: str) -> list[int]:
    # sacrebleu keeps these counts to itself; the same rule in public: no white space, and the
    # answer's n-grams count only where the reference has any of that length.
    answer, truth = "".join(prediction.split()), "".join(reference.split())
    counts: list[int] = []
    for n in range(1, ORDER + 1):
        mine = Counter(answer[i : i + n] for i in range(len(answer) - n + 1))
        theirs = Counter(truth[i : i + n] for i in range(len(truth) - n + 1))
        counts += [mine.total() if theirs else 0, theirs.total(), (mine & theirs).total()]
    return counts
