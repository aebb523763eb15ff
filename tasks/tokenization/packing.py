"""Put rows together into packs that are as full as they can be, from the rows' lengths alone."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.tokenization.best_fit import best_fit_decreasing
from tasks.tokenization.exact_fit import exact_fit

TRAIN_PACKS = "train_packs.parquet"
"""Its existence says that the training rows are to be read in packs."""

FULL_ENOUGH = 0.999
"""Share of positions with a token above which no other plan is looked for."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packs:
    """Which rows share a pack. Every row is in exactly one."""

    rows: NDArray[np.int32]
    """Row numbers, pack after pack; in a pack the longest row comes first. Shape (rows,)."""
    offsets: NDArray[np.int32]
    """Pack `p` holds `rows[offsets[p]:offsets[p + 1]]`. Shape (packs + 1,)."""
    tokens: int
    """Of all rows."""
    capacity: int
    """The most tokens that a pack can hold."""

    def __len__(self) -> int:
        """Number of packs."""
        return len(self.offsets) - 1

    @property
    def fill(self) -> float:
        """Share of the packs' positions that hold a token; 1.0 means that no position is padding."""
        return self.tokens / (len(self) * self.capacity) if len(self) else 1.0


def pack(lengths: Sequence[int] | NDArray[Any], capacity: int) -> Packs:
    """Best-fit decreasing, and where that leaves gaps, full packs first; whatever needs fewer packs.

    Depends on the lengths and their order alone.

    Raises: ValueError for a length outside 1 to `capacity`.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if len(sizes) and not 1 <= sizes.min() <= sizes.max() <= capacity:
        raise ValueError(
            f"rows have {sizes.min():,} to {sizes.max():,} tokens; a pack takes 1 to {capacity:,}"
        )
    histogram = np.bincount(sizes)
    counts = {length: int(histogram[length]) for length in np.flatnonzero(histogram).tolist()}
    tokens = int(sizes.sum())
    plan = best_fit_decreasing(counts, capacity)
    if tokens < FULL_ENOUGH * plan.packs * capacity:
        plan = min(plan, exact_fit(counts, capacity), key=lambda found: found.packs)
    # Numpy sorts small integers by radix, several times faster than wide ones.
    rank = (capacity - sizes).astype(np.min_scalar_type(capacity))
    longest_first = np.argsort(rank, kind="stable")
    placed = chain.from_iterable(plan.owners[length] for length in sorted(counts, reverse=True))
    owners = np.fromiter(placed, np.int32, len(sizes))
    together = np.argsort(owners.astype(np.min_scalar_type(plan.packs)), kind="stable")
    ends = np.cumsum(np.bincount(owners, minlength=plan.packs))
    return Packs(
        rows=longest_first[together].astype(np.int32),
        offsets=np.concatenate([[0], ends]).astype(np.int32),
        tokens=tokens,
        capacity=capacity,
    )


def write_packs(folder: Path, lengths: Sequence[int] | NDArray[Any], capacity: int) -> Packs:
    """Pack the rows of `train.parquet`, whose `lengths` come in its order, and write `TRAIN_PACKS`.

    One line a pack; column `rows`, a list of row numbers (int32, from 0). The file's metadata names
    the `capacity`.
    """
    packs = pack(lengths, capacity)
    table = pa.table({"rows": pa.ListArray.from_arrays(packs.offsets, packs.rows)})
    table = table.replace_schema_metadata({"capacity": str(capacity)})
    pq.write_table(table, folder / TRAIN_PACKS, compression="zstd")
    _log.info(
        "Packed %d training rows into %d packs of %d tokens, %.2f %% full",
        len(packs.rows),
        len(packs),
        capacity,
        100 * packs.fill,
    )
    return packs
