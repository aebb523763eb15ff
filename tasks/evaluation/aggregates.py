"""A metric's value from the sum of its rows' statistics, for one sum or for thousands at once.

Every metric is a function of a sum over rows: a mean of its scores and their number, corpus BLEU of
n-gram counts. Resampling rows then costs one matrix product for all metrics and models together.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

BLEU_ORDER = 4
CHRF_BETA_SQUARED = 4.0


def value_of(metric: str) -> Callable[[Array], Array]:
    """The function from sums of shape (..., k) to values of shape (...); see the metric's module."""
    return _SPECIAL.get(metric, quotient)


def quotient(sums: Array) -> Array:
    """[sum of scores, weight] -> mean; NaN where the weight is 0."""
    return _divide(sums[..., 0], sums[..., 1], empty=np.nan)


def exponential(sums: Array) -> Array:
    """[sum of losses, tokens] -> perplexity; infinite where a float cannot hold it."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(quotient(sums)), dtype=np.float64)


def corpus_bleu(sums: Array) -> Array:
    """[answer words, reference words, 4 matches, 4 totals] -> BLEU on 0-1.

    The geometric mean of the four precisions times the brevity penalty (Papineni et al. 2002). A
    precision without a match is replaced by 1/(2^k total) at the k-th such order, as NIST's
    mteval-v13a and sacrebleu's `exp` do; without any match, or without a 4-gram, BLEU is 0.
    """
    answer, reference = sums[..., 0], sums[..., 1]
    matches, totals = sums[..., 2 : 2 + BLEU_ORDER], sums[..., 2 + BLEU_ORDER :]
    without = (matches == 0) & (totals > 0)
    smoothed = 1.0 / 2.0 ** np.cumsum(without, axis=-1)
    precisions = _divide(np.where(without, smoothed, matches), totals, empty=0.0)
    defined = (matches.sum(axis=-1) > 0) & (totals > 0).all(axis=-1)
    logs = np.log(np.where(defined[..., None], precisions, 1.0)).mean(axis=-1)
    penalty = np.minimum(0.0, 1.0 - _divide(reference, answer, empty=1.0))
    return np.asarray(np.where(defined, np.exp(logs + penalty), 0.0), dtype=np.float64)


def corpus_chrf(sums: Array) -> Array:
    """[answer, reference, both] n-gram counts for n = 1..6 -> chrF2 on 0-1.

    Precision and recall are averaged over the lengths that occur on both sides, then combined with
    beta = 2 (Popović 2015, sacrebleu's effective order).
    """
    answer, reference, both = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    counted = (answer > 0) & (reference > 0)
    lengths = counted.sum(axis=-1)
    precision = _divide(
        np.where(counted, _divide(both, answer, empty=0.0), 0.0).sum(axis=-1), lengths, empty=0.0
    )
    recall = _divide(
        np.where(counted, _divide(both, reference, empty=0.0), 0.0).sum(axis=-1), lengths, empty=0.0
    )
    return _divide(
        (1 + CHRF_BETA_SQUARED) * precision * recall,
        CHRF_BETA_SQUARED * precision + recall,
        empty=0.0,
    )


def macro_f1(sums: Array) -> Array:
    """[right answers, answers, references] a label -> the mean F1 of the labels among the references."""
    hits, given, wanted = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    scores = _divide(2 * hits, given + wanted, empty=0.0)
    occurs = wanted > 0
    return _divide(np.where(occurs, scores, 0.0).sum(axis=-1), occurs.sum(axis=-1), empty=np.nan)


def _divide(above: Any, below: Any, *, empty: float) -> Array:
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    result = np.full(above.shape, empty)
    np.divide(above, below, out=result, where=below != 0)
    return result


_SPECIAL: dict[str, Callable[[Array], Array]] = {
    "perplexity": exponential,
    "bleu": corpus_bleu,
    "chrf": corpus_chrf,
    "macro_f1": macro_f1,
}
