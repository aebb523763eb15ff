"""F1 of the words that answer and reference share, as SQuAD counts them."""

import re
import string
from collections import Counter
from typing import Any

import datasets
import evaluate

DESCRIPTION = (
    "Mean F1 (0-1) of shared words: lower case, without ASCII punctuation and English articles, as "
    "SQuAD's script counts (Rajpurkar et al. 2016)."
)
INPUTS = """
Args:
    predictions: list of str, one a row; a blank one scores 0.
    references: list of str.
Returns:
    token_f1: float, 0-1.
    rows: {"token_f1": list of float}.
    statistics: {"token_f1": list of [score, 1]}; the value is the quotient of their sums.
"""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TokenF1(evaluate.Metric):
    """SQuAD's F1."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Rajpurkar et al. SQuAD: 100,000+ Questions for Machine Comprehension of Text. 2016.",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        rows = [_f1(p, r) for p, r in zip(predictions, references, strict=True)]
        return {
            "token_f1": sum(rows) / len(rows),
            "rows": {"token_f1": rows},
            "statistics": {"token_f1": [[score, 1.0] for score in rows]},
        }


def _f1(prediction: str, reference: str) -> float:
    if not prediction.strip():
        return 0.0
    mine, theirs = _words(prediction), _words(reference)
    if not mine or not theirs:
        # Nothing but articles and punctuation on one side: right only where it is so on both.
        return float(mine == theirs)
    shared = (Counter(mine) & Counter(theirs)).total()
    return 2 * shared / (len(mine) + len(theirs))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()
