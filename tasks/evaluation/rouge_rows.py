"""ROUGE-1, -2, -L and -Lsum of every row: rouge-score's numbers to the bit, many times faster.

The fast scorer splits text as rouge-score does: whatever is no ASCII letter or digit is a gap. Rows of
other scripts reach it as numbered words in the same order, which have the same n-grams and the same
longest common subsequences. Some rows are scored by rouge-score too, in every call; where one number
differs, rouge-score scores them all.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from tasks.evaluation.aggregates import Array

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
CHECKED_ROWS = 16
CHECKED_CHARACTERS = 4000
"""Longest pair that is checked: rouge-score's time grows with the product of both lengths."""

# On ASCII text these are rouge-score's own words, to the bit. Its pattern drops every other letter,
# so that an answer in Greek would score 0; scripts without spaces are taken character by character.
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
    r"|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)

Scorer = Callable[[Sequence[str], Sequence[str]], Array]
"""References and answers -> scores of shape (rows, 4, 3)."""


@dataclass(frozen=True)
class RougeRows:
    """What was found, and by which library."""

    scores: Array
    """(rows, 4, 3): for each of `NAMES` precision, recall and F."""
    library: str
    note: str = ""
    """Why the fast scorer was not used; empty where it was."""


class Words:
    """Lower-case words of any script, as rouge-score calls a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        """The words of `text`, in order."""
        return WORD.findall(unicodedata.normalize("NFC", text).lower())


def rouge_rows(
    predictions: Sequence[str], references: Sequence[str], fast: Scorer | None = None
) -> RougeRows:
    """Score each prediction against its reference; without a word on either side a row scores 0.

    `fast` takes the place of rouge-score-rs.
    """
    try:
        scorer = fast or _by_rouge_score_rs
        scores = scorer(references, predictions)
        sample = _sample(predictions, references)
        theirs = _by_rouge_score(
            [references[row] for row in sample], [predictions[row] for row in sample]
        )
        if np.array_equal(scores[sample], theirs):
            return RougeRows(scores, "rouge-score-rs")
        wrong = int((scores[sample] != theirs).any(axis=(1, 2)).sum())
        why = f"it scores {wrong} of {len(sample)} checked rows otherwise than rouge-score"
    except ImportError as error:
        why = f"it cannot be imported here ({error})"
    note = f"ROUGE is computed by rouge-score, which is slower; rouge-score-rs is left out: {why}."
    return RougeRows(_by_rouge_score(references, predictions), "rouge-score", note)


def _by_rouge_score_rs(references: Sequence[str], predictions: Sequence[str]) -> Array:
    from rouge_score_rs.rouge_scorer import RougeScorer

    pairs = [_plain(r, p) for r, p in zip(references, predictions, strict=True)]
    found = RougeScorer(list(NAMES)).score_batch([r for r, _ in pairs], [p for _, p in pairs])
    return _array(found)


def _by_rouge_score(references: Sequence[str], predictions: Sequence[str]) -> Array:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(NAMES), tokenizer=Words())
    return _array([scorer.score(r, p) for r, p in zip(references, predictions, strict=True)])


def _plain(reference: str, prediction: str) -> tuple[str, str]:
    if reference.isascii() and prediction.isascii():
        return reference, prediction
    numbers: dict[str, str] = {}
    tokenize = Words().tokenize
    texts = [
        "\n".join(
            " ".join([numbers.setdefault(word, str(len(numbers))) for word in tokenize(line)])
            for line in text.split("\n")
        )
        for text in (reference, prediction)
    ]
    return texts[0], texts[1]


def _sample(predictions: Sequence[str], references: Sequence[str]) -> list[int]:
    """Rows spread over all, those first that are not plain English: they have more ways to differ."""
    short = [
        row
        for row, texts in enumerate(zip(predictions, references, strict=True))
        if sum(map(len, texts)) <= CHECKED_CHARACTERS
    ]
    odd = [row for row in short if not (predictions[row] + references[row]).isascii()]
    chosen = _spread(odd, CHECKED_ROWS // 2)
    others = sorted({*short} - {*chosen})
    return sorted([*chosen, *_spread(others, CHECKED_ROWS - len(chosen))])


def _spread(rows: Sequence[int], count: int) -> list[int]:
    return list(rows[:: max(1, -(-len(rows) // count))])


def _array(found: Sequence[Mapping[str, Sequence[float]]]) -> Array:
    """Both libraries keep the order in which the names were given."""
    flat = chain.from_iterable(chain.from_iterable(scores.values() for scores in found))
    shape = (len(found), len(NAMES), 3)
    return np.fromiter(flat, np.float64, math.prod(shape)).reshape(shape)
