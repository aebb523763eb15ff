"""Lay training rows one behind the other, as the tokenization stage has packed them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

TRAIN_PACKS = "train_packs.parquet"
"""Lies beside `train.parquet` where `tokenization.packing` is on."""
EXAMPLE_LENGTHS = "seq_lengths"
"""The column that tells a packed row's examples apart; TRL's name for it."""
_IDS = pa.large_list(pa.int32())
"""Offsets of 64 bits: a dataset may hold more than 2 ** 31 tokens."""


@dataclass(frozen=True)
class Packs:
    """Which rows of `train.parquet` share a packed row."""

    rows: pa.ListArray
    """Row numbers of each pack."""
    capacity: int
    """The most tokens that a pack can hold."""

    def fill(self, tokens: int) -> float:
        """Share of the packs' positions that `tokens` tokens take."""
        return tokens / (len(self.rows) * self.capacity)


def read_packs(tokens: Path) -> Packs | None:
    """The packs of a tokenization output; None where each row stands alone."""
    path = tokens / TRAIN_PACKS
    if not path.is_file():
        return None
    table = pq.read_table(path)
    return Packs(table["rows"].combine_chunks(), int(table.schema.metadata[b"capacity"]))


def packed_table(rows: pa.Table, packs: Packs) -> pa.Table:
    """One line a pack: `input_ids` and `labels` of its rows one behind the other, `seq_lengths`."""
    order = packs.rows.flatten()
    assert np.array_equal(np.sort(order), np.arange(len(rows))), "a row is packed twice or never"
    ids, labels = (
        rows[name].cast(_IDS).take(order).combine_chunks() for name in ("input_ids", "labels")
    )
    ends = np.concatenate([[0], np.cumsum(pc.list_value_length(ids))])
    # Of the first row to those of the first token: where a pack begins.
    first_rows = packs.rows.offsets.to_numpy()
    begins = pa.array(ends[first_rows], pa.int64())
    return pa.table(
        {
            "input_ids": pa.LargeListArray.from_arrays(begins, ids.flatten()),
            "labels": pa.LargeListArray.from_arrays(begins, labels.flatten()),
            EXAMPLE_LENGTHS: pa.ListArray.from_arrays(
                packs.rows.offsets, pc.list_value_length(ids).cast(pa.int32())
            ),
        }
    )
