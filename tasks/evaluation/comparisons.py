"""Differences between contestants, each with its interval from one shared paired bootstrap."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tasks.evaluation.aggregates import Array, value_of
from tasks.evaluation.bootstrap import interval, resampled_sums
from tasks.evaluation.job import Interval

CONFIDENCE = 0.95

Statistics = dict[str, Array]
"""Metric -> its statistics, one line a row."""


class Comparisons:
    """Observed and resampled values of every contestant; all on the same resampled rows."""

    def __init__(self, statistics: Mapping[str, Statistics], samples: int) -> None:
        flat = {
            (name, metric): array
            for name, metrics in statistics.items()
            for metric, array in metrics.items()
        }
        self._observed = {
            key: float(value_of(key[1])(array.sum(axis=0))) for key, array in flat.items()
        }
        self._resampled = {
            key: value_of(key[1])(sums) for key, sums in resampled_sums(flat, samples).items()
        }

    def observed(self, name: str) -> dict[str, float]:
        """Every metric's value on the test rows themselves."""
        return {metric: value for (who, metric), value in self._observed.items() if who == name}

    def interval(
        self, name: str, other: str, metric: str, confidence: float
    ) -> tuple[float, float]:
        """Low and high of `name` minus `other`; NaN where that is no number."""
        with np.errstate(invalid="ignore"):  # infinite minus infinite
            differences = self._resampled[name, metric] - self._resampled[other, metric]
        return interval(differences, confidence)

    def intervals(
        self, name: str, other: str, confidences: Sequence[float]
    ) -> dict[str, dict[str, tuple[float, float]]]:
        """Metric -> confidence (`str(float)`) -> low and high; metrics that give numbers only."""
        found = {
            metric: {str(c): self.interval(name, other, metric, c) for c in confidences}
            for metric in self.observed(other)
        }
        return {
            metric: spans
            for metric, spans in found.items()
            if all(math.isfinite(end) for span in spans.values() for end in span)
        }

    def against(self, name: str, other: str) -> dict[str, Interval]:
        """`name` minus `other` in every metric that `other` has and that gives a number."""
        found: dict[str, Interval] = {}
        for metric, value in self.observed(other).items():
            low, high = self.interval(name, other, metric, CONFIDENCE)
            difference = self._observed[name, metric] - value
            if all(map(math.isfinite, (difference, low, high))):
                found[metric] = Interval(mean=difference, low=low, high=high)
        return found
