"""`loraline verify`: what a version says of its files and rows is recomputed."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tasks.home import Home
from tasks.registration.checking import _rows

IDS = np.array([3, 2**63 + 1, 7], dtype=np.uint64)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / ".loraline")


@pytest.fixture
def about(tmp_path: Path, home: Home) -> Path:
    """A version's papers, and the prepared dataset that they speak of in the store."""
    prepared = home.store / "dataset" / ("ab" * 32)
    prepared.mkdir(parents=True)
    digests = {}
    for side in ("train", "test"):
        (prepared / f"{side}.jsonl").write_text(f"rows of {side}\n")
        digests[side] = {
            "ordered": hashlib.sha256(f"rows of {side}\n".encode()).hexdigest(),
            "any_order": hashlib.sha256(np.sort(IDS).astype(">u8").tobytes()).hexdigest(),
        }
    card = json.dumps({"digest": "d", "digests": digests})
    (prepared / "card.json").write_text(card)
    folder = tmp_path / "about"
    folder.mkdir()
    (folder / "dataset.json").write_text(card)
    np.save(folder / "train_rows.npy", np.sort(IDS))
    return folder


def test_rows_and_files_that_are_as_recorded_pass(about: Path, home: Home) -> None:
    checks = {check.name: check.passed for check in _rows(about, home)}
    assert checks == {"training rows": True, "train.jsonl": True, "test.jsonl": True}


def test_a_row_more_is_seen(about: Path, home: Home) -> None:
    np.save(about / "train_rows.npy", np.array([*IDS, 8], dtype=np.uint64))
    assert next(c for c in _rows(about, home) if c.name == "training rows").passed is False


def test_a_file_that_is_gone_from_the_store_fails_its_check(about: Path, home: Home) -> None:
    (home.store / "dataset" / ("ab" * 32) / "test.jsonl").unlink()
    checks = {check.name: check for check in _rows(about, home)}
    assert checks["train.jsonl"].passed is True
    assert checks["test.jsonl"].passed is False
    assert "missing" in checks["test.jsonl"].told


def test_a_changed_byte_of_the_prepared_rows_is_seen(about: Path, home: Home) -> None:
    (home.store / "dataset" / ("ab" * 32) / "test.jsonl").write_text("rows of Test\n")
    checks = {check.name: check.passed for check in _rows(about, home)}
    assert checks["test.jsonl"] is False
    assert checks["train.jsonl"] is True


def test_what_cannot_be_compared_is_said_and_no_failure(about: Path, home: Home) -> None:
    (home.store / "dataset" / ("ab" * 32) / "card.json").unlink()
    assert _rows(about, home)[-1].passed is None
    (about / "train_rows.npy").unlink()
    assert [check.passed for check in _rows(about, home)] == [None]
