from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import DataError
from tasks.evaluation.seen import unseen_rows
from tasks.seen import COPY_FIELDS, TEST_COPIES, SeenPolicy

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


@pytest.mark.parametrize("policy", ["refuse", "drop"])
def test_copies_of_what_the_champion_was_trained_on_are_left_out_under_either_policy(
    rows: Path, tmp_path: Path, policy: SeenPolicy
) -> None:
    copies = [
        # Left out of training for the second test row: under another id, and trained by the champion.
        (99, 0, False),
        (2**63 + 5, 0, True),
        # For the last one: the champion has never met it.
        (98, 1, False),
        (7, 1, True),
    ]
    np.save(tmp_path / TEST_COPIES, np.array(copies, dtype=COPY_FIELDS))
    np.save(tmp_path / "train_rows.npy", np.array([99], dtype=np.uint64))

    kept, dropped = unseen_rows(rows, tmp_path / "train_rows.npy", policy, tmp_path)

    assert dropped == 2
    assert pq.read_table(kept)["id"].to_pylist() == [IDS[0], IDS[3]]


def test_a_row_that_no_copy_explains_is_refused_beside_those_that_one_does(
    rows: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / TEST_COPIES, np.array([(7, 0, False), (7, 0, True)], dtype=COPY_FIELDS))
    np.save(tmp_path / "train_rows.npy", np.array([1, 7], dtype=np.uint64))

    with pytest.raises(DataError, match=r"1 of 4 test rows were training rows .*0001\)"):
        unseen_rows(rows, tmp_path / "train_rows.npy", "refuse", tmp_path)
