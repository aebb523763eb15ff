"""The longest rows of a side, read back from what was written."""

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pyarrow.parquet as pq

from tasks.tokenization.tally import Sample


def longest_rows(file: Path, lengths: Sequence[int], count: int) -> list[Sample]:
    """The `count` longest rows of a side's Parquet file, the longest first.

    `lengths` are the rows' tokens, in the file's order. Only the groups of rows that hold one of them
    are read.
    """
    places = heapq.nsmallest(count, range(len(lengths)), key=lambda place: (-lengths[place], place))
    found: dict[int, Sample] = {}
    with pq.ParquetFile(file) as rows:
        groups = range(rows.num_row_groups)
        sizes = (rows.metadata.row_group(group).num_rows for group in groups)
        starts = [0, *accumulate(sizes)]
        by_group: dict[int, list[int]] = {}
        for place in places:
            by_group.setdefault(bisect_right(starts, place) - 1, []).append(place)
        for group, wanted in by_group.items():
            table = rows.read_row_group(group, columns=["id", "input_ids", "labels"])
            within = [place - starts[group] for place in wanted]
            for place, row in zip(wanted, table.take(within).to_pylist(), strict=True):
                found[place] = Sample(row["id"], row["input_ids"], row["labels"])
    return [found[place] for place in places]
