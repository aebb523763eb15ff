"""Predictions of earlier evaluations, beside other evaluations that keep and clear away theirs."""

import os
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluation import kept
from tasks.evaluation.kept import KeptPredictions

COLUMNS = {"answer": ["a", "b"]}


def test_the_oldest_go_first_and_what_is_used_counts_as_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "MOST_FILES", 2)
    store = KeptPredictions(tmp_path)
    for number in range(2):
        store.keep({"number": number}, COLUMNS)
    for age, path in enumerate(tmp_path.glob("*.parquet")):
        os.utime(path, (age, age))
    assert store.find({"number": 0}, 2) == COLUMNS
    store.keep({"number": 2}, COLUMNS)
    assert [store.find({"number": n}, 2) for n in range(3)] == [COLUMNS, None, COLUMNS]


def test_a_file_that_another_evaluation_clears_away_meanwhile_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KeptPredictions(tmp_path)
    store.keep({"number": 0}, COLUMNS)
    (doomed,) = tmp_path.glob("*.parquet")
    listed = Path.glob

    def cleared(folder: Path, pattern: str) -> Any:
        found = list(listed(folder, pattern))
        doomed.unlink(missing_ok=True)
        return iter(found)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", cleared)
        store.keep({"number": 1}, COLUMNS)
    assert store.find({"number": 1}, 2) == COLUMNS
    assert store.find({"number": 0}, 2) is None


def test_one_that_is_cleared_away_while_it_is_read_does_not_come_back_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KeptPredictions(tmp_path)
    store.keep({"number": 0}, COLUMNS)
    (doomed,) = tmp_path.glob("*.parquet")
    read = kept.pq.read_table

    def cleared(path: Path) -> Any:
        table = read(path)
        path.unlink()
        return table

    monkeypatch.setattr(kept.pq, "read_table", cleared)
    assert store.find({"number": 0}, 2) == COLUMNS
    assert not doomed.exists()
