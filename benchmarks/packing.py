"""How fast and how full rows are packed, against TRL's own best-fit-decreasing packing."""

import time
from typing import Any

import numpy as np
import pyarrow as pa
from harness import Result, main, ratio
from numpy.typing import NDArray

from tasks.tokenization.packing import Packs, pack

ROWS = 100_000
CAPACITY = 2048
MEDIAN_TOKENS, SIGMA = 300, 1.0
"""Of the log-normal lengths, cut off at the capacity: chat data as it is found."""


def lengths(rows: int = ROWS) -> NDArray[np.int64]:
    """Row lengths in tokens, the same in every run."""
    drawn = np.random.default_rng(0).lognormal(np.log(MEDIAN_TOKENS), SIGMA, rows)
    return np.clip(np.rint(drawn), 1, CAPACITY).astype(np.int64)


def timed(sizes: NDArray[np.int64]) -> tuple[float, Packs]:
    """Seconds of one packing, and the packs."""
    started = time.perf_counter()
    packs = pack(sizes, CAPACITY)
    return time.perf_counter() - started, packs


def values(runs: int = 5) -> dict[str, float]:
    """`pack_rows_per_second` (best of `runs`, one core) and `pack_fill`."""
    sizes = lengths()
    measured = [timed(sizes) for _ in range(runs)]
    return {
        "pack_rows_per_second": len(sizes) / min(seconds for seconds, _ in measured),
        "pack_fill": measured[0][1].fill,
    }


def measure(quick: bool) -> Result:
    """Pairs on the same lengths, interleaved. The reference moves its tokens too, one byte each here."""
    from trl.data_utils import _pack_bfd

    sizes = lengths()
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    tokens = pa.array(np.zeros(offsets[-1], dtype=np.int8))
    table = pa.table({"input_ids": pa.LargeListArray.from_arrays(offsets, tokens)})
    ours, theirs = [], []
    reference: Any = None
    for _ in range(3 if quick else 9):
        seconds, packs = timed(sizes)
        ours.append(seconds)
        started = time.perf_counter()
        reference = _pack_bfd(table, CAPACITY)
        theirs.append(time.perf_counter() - started)
    result = Result("packing", ("trl", "numpy"))
    result.ratios["vs_trl"] = ratio(theirs, ours)
    result.values = values() | {"reference_rows_per_second": len(sizes) / min(theirs)}
    spaces = [sum(row) for row in reference["seq_lengths"].to_pylist()]
    mine = np.add.reduceat(sizes[packs.rows], packs.offsets[:-1])
    result.equal = sorted(spaces) == sorted(mine.tolist())
    return result


if __name__ == "__main__":
    main(measure, __doc__ or "")
