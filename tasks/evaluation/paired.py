"""Paired tests on rows that two models share: how much one gains on the other, and whether it may be chance."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]

from tasks.evaluation.aggregates import Array
from tasks.evaluation.bootstrap import DECIMALS, SEED

Correction = Literal["holm", "bonferroni", "none"]

_NORMAL = NormalDist()
_SIGNS_AT_ONCE = 4_000_000
_FEWEST = 5


@dataclass(frozen=True)
class Gain:
    """Observed and resampled gains of one model on another, in the metric's better direction."""

    observed: float
    resampled: Array
    """Shape (resamples,), sorted, without those that give no number."""
    differing: int
    """Rows on which the two models' statistics differ: the only ones that tell them apart."""
    rows: int

    def interval(self, confidence: float) -> tuple[float, float]:
        """The central interval; both ends NaN if no resample gave a number.

        A percentile interval, widened as Hesterberg (2015, The American Statistician 69:4) proposes:
        plain percentiles are those of a normal distribution with the variance's n instead of n - 1,
        too narrow with few rows. Here n is `differing`: two models that give 190 of 200 answers
        alike are told apart by ten rows. It is taken for 5 at least: Student's t with one or two
        degrees of freedom would never let an adapter pass that differs in two rows of a thousand.
        """
        count = len(self.resampled)
        if not count:
            return math.nan, math.nan
        level = _widened((1 - confidence) / 2, self._degrees)
        # The k-th smallest lies above a margin exactly if `p_value` of that margin is at most the level.
        place = max(1, math.floor(level * (count + 1)))
        return float(self.resampled[place - 1]), float(self.resampled[count - place])

    def p_value(self, margin: float) -> float:
        """One-sided: how likely such resamples are if the true gain were no more than `margin`."""
        count = len(self.resampled)
        if not count or not math.isfinite(self.observed):
            return 1.0
        below = int(np.searchsorted(self.resampled, round(margin, DECIMALS), side="right"))
        share = (1 + below) / (1 + count)
        if share >= 1 or not self.differing:
            return share
        return _unwidened(share, self._degrees)

    @property
    def _degrees(self) -> int:
        return max(1, max(self.differing, min(self.rows, _FEWEST)) - 1)


def gain_of(
    mine: Array,
    theirs: Array,
    value: Callable[[Array], Array],
    direction: int,
    *,
    sums: tuple[Array, Array],
) -> Gain:
    """Compare two models' statistics of shape (rows, k), of which `value` makes a metric.

    `direction` is 1 where more is better and -1 where less is. `sums` are both models' resampled
    sums, shape (resamples, k), of the same resamples (`bootstrap.resampled_sums`).
    """
    observed = direction * (value(mine.sum(axis=0)) - value(theirs.sum(axis=0)))
    with np.errstate(invalid="ignore"):  # infinite minus infinite
        resampled = direction * (value(sums[0]) - value(sums[1]))
    # What different orders of summing leave in the last bits must not look like a gain above zero.
    known = np.sort(resampled[np.isfinite(resampled)].round(DECIMALS))
    differing = int((mine != theirs).any(axis=1).sum())
    return Gain(round(float(observed), DECIMALS), known, differing, len(mine))


def permutation_p_value(
    mine: Array,
    theirs: Array,
    value: Callable[[Array], Array],
    direction: int,
    *,
    margin: float,
    permutations: int,
    seed: int = SEED,
) -> float:
    """One-sided p-value of the paired permutation test: models exchanged at random on every row.

    Under the hypothesis that the two are equally good, which of a row's two answers is whose is a
    coin's throw (Fisher 1935; Noreen 1989); the test is then exact for any number of rows and any
    metric. A `margin` other than zero shifts every row by it, which has a meaning only where the
    metric is a mean, statistics [sum, weight] with one weight for both models; ValueError elsewhere.
    """
    if margin:
        if mine.shape[1] != 2 or not np.array_equal(mine[:, 1], theirs[:, 1]):
            raise ValueError("a margin shifts rows, and this metric is no mean of rows")
        theirs = theirs.copy()
        theirs[:, 0] += direction * margin * theirs[:, 1]
    differs = (mine != theirs).any(axis=1)
    halves = (mine[differs] - theirs[differs]) / 2
    middle = (mine + theirs).sum(axis=0) / 2

    def gains(away: Array) -> Array:
        return np.asarray(direction * (value(middle + away) - value(middle - away)))

    observed = round(float(gains(halves.sum(axis=0))), DECIMALS)
    if not math.isfinite(observed):
        return 1.0
    generator = np.random.default_rng([seed, 1])
    block = max(1, min(permutations, _SIGNS_AT_ONCE // max(1, len(halves))))
    as_large = 0
    for start in range(0, permutations, block):
        size = min(block, permutations - start)
        signs = 2.0 * generator.integers(2, size=(size, len(halves)), dtype=np.int8) - 1.0
        as_large += int((gains(signs @ halves).round(DECIMALS) >= observed).sum())
    return (1 + as_large) / (1 + permutations)


@dataclass(frozen=True)
class Adjustment:
    """How one claim's p-values are corrected for the other claims."""

    factor: int = 1
    """Claims that its p-value stands for."""
    least: float = 0.0
    """The adjusted p-value of the claims that are stronger: a weaker one is never surer than they are."""

    def of(self, p: float) -> float:
        """The p-value as if this claim were the only one, at most 1."""
        return min(1.0, max(self.least, self.factor * p))


def adjustments(p_values: Sequence[float], correction: Correction) -> list[Adjustment]:
    """Of each claim, in their order (Holm 1979; Bonferroni).

    Comparing each adjusted p-value with its own level keeps the chance of any false claim among them at
    that level.
    """
    count = len(p_values)
    if correction != "holm":
        return [Adjustment(count if correction == "bonferroni" else 1)] * count
    found = [Adjustment()] * count
    largest = 0.0
    for rank, place in enumerate(sorted(range(count), key=lambda place: p_values[place])):
        found[place] = Adjustment(count - rank, largest)
        largest = found[place].of(p_values[place])
    return found


def adjusted(p_values: Sequence[float], correction: Correction) -> list[float]:
    """The p-values as if each claim were the only one."""
    found = adjustments(p_values, correction)
    return [one.of(p) for one, p in zip(found, p_values, strict=True)]


def resamples_for(asked: int, claims: int, confidence: float) -> int:
    """At least `asked`, and enough to see the p-value that the last of `claims` must reach."""
    return max(asked, math.ceil(20 * max(1, claims) / ((1 - confidence) / 2)))


def _widened(level: float, degrees: int) -> float:
    quantile = float(stdtrit(degrees, level)) * math.sqrt((degrees + 1) / degrees)
    return _NORMAL.cdf(quantile)


def _unwidened(share: float, degrees: int) -> float:
    quantile = _NORMAL.inv_cdf(share) * math.sqrt(degrees / (degrees + 1))
    return float(stdtr(degrees, quantile))
