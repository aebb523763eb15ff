from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.evaluation.seen import unseen_rows

IDS = ["0000000000000001", "8000000000000005", "8000000000000005-2", "0000000000000007"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"id": IDS, "prompt": list("abcd")}), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_without_a_champion_all_rows_are_evaluated(rows: Path, tmp_path: Path) -> None:
    assert unseen_rows(rows, None, "refuse", tmp_path) == (rows, 0)


def test_rows_that_the_champion_was_trained_on_are_left_out_with_their_parts(
    rows: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "train_rows.npy", np.array([2**63 + 5], dtype=np.uint64))

    kept, dropped = unseen_rows(rows, tmp_path / "train_rows.npy", "drop", tmp_path)

    assert dropped == 2
    assert pq.read_table(kept)["id"].to_pylist() == [IDS[0], IDS[3]]
