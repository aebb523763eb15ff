from pathlib import Path

import numpy as np
import pytest

from tasks.errors import DataError
from tasks.seen import seen_by_champion

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
