import os
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import DataError
from tasks.seen import seen_by_champion, together

IDS = np.array([1, 2**63 + 5, 7], dtype=np.uint64)


def trained_on(folder: Path, *numbers: int) -> Path:
    np.save(folder / "train_rows.npy", np.array(sorted(numbers), dtype=np.uint64))
    return folder / "train_rows.npy"


def test_rows_that_the_champion_never_saw_are_not_marked(tmp_path: Path) -> None:
    assert not seen_by_champion(IDS, trained_on(tmp_path, 3, 4), "refuse").any()


def test_rows_that_the_champion_was_trained_on_are_refused(tmp_path: Path) -> None:
    champion = trained_on(tmp_path, 2**63 + 5, 9)

    with pytest.raises(DataError, match=r"1 of 3 test rows .* \(8000000000000005\)") as caught:
        seen_by_champion(IDS, champion, "refuse")

    assert "seen_by_champion: drop" in str(caught.value)
    assert seen_by_champion(IDS, champion, "drop").tolist() == [False, True, False]


def test_leaving_all_rows_out_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="None is left"):
        seen_by_champion(IDS, trained_on(tmp_path, *IDS.tolist()), "drop")


def test_ids_of_several_files_are_put_together_once(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    files = [trained_on(tmp_path / "one", 3, 9), trained_on(tmp_path / "two", 1, 9, 2**63)]
    cache = tmp_path / "cache"
    found = together(files, cache)
    assert found is not None
    assert np.load(found).tolist() == [1, 3, 9, 2**63]
    old = cache / "old.npy"
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    assert together(files[::-1], cache) == found
    assert together([files[0]], cache) == files[0]
    assert together([], cache) is None
    trained_on(tmp_path / "two", 5)
    assert together(files, cache) != found
    assert not old.exists()
    assert found.exists()
