"""Paired bootstrap: the same resampled rows for every model and metric (Efron 1979; Koehn 2004)."""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from tasks.evaluation.aggregates import Array

SEED = 0
"""Fixed, so that the same predictions always give the same interval."""

DRAWS_AT_ONCE = 4_000_000
"""Row numbers drawn per block: bounds memory (32 MB) whatever the number of rows."""

DECIMALS = 12

Key = TypeVar("Key")


def resampled_sums(
    statistics: Mapping[Key, Array], samples: int, seed: int = SEED
) -> dict[Key, Array]:
    """Sums of each entry's rows over `samples` resamples: (rows, k) -> (samples, k).

    A resample draws as many rows as there are, with replacement; the same ones for all entries, so
    that differences between entries are paired.
    """
    keys = list(statistics)
    rows = len(statistics[keys[0]])
    columns = np.concatenate([statistics[key] for key in keys], axis=1)
    block = max(1, min(samples, DRAWS_AT_ONCE // rows))
    generator = np.random.default_rng(seed)
    sums = np.empty((samples, columns.shape[1]))
    for start in range(0, samples, block):
        size = min(block, samples - start)
        drawn = generator.integers(rows, size=(size, rows))
        cells = drawn + rows * np.arange(size)[:, None]
        times = np.bincount(cells.ravel(), minlength=size * rows).reshape(size, rows)
        sums[start : start + size] = times.astype(np.float64) @ columns
    ends = np.cumsum([statistics[key].shape[1] for key in keys])[:-1]
    return dict(zip(keys, np.split(sums, ends, axis=1), strict=True))


def interval(differences: Array, confidence: float) -> tuple[float, float]:
    """The central percentile interval of resampled differences of shape (samples,).

    NaN if no resample gives a number. A resample without one (none of the rows an answerer speaks
    on was drawn) says nothing and is left out.
    """
    known = differences[~np.isnan(differences)]
    if not len(known):
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    # The matrix product may sum equal columns in different orders. What that leaves in the last bits
    # must not look like a gain above zero.
    low, high = np.quantile(known, [tail, 1 - tail]).round(DECIMALS)
    return float(low), float(high)
