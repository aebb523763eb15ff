"""Slices are read from the dataset's rows; what cannot be told is told so."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.evaluation.slicing import slice_rows

PREDICTIONS: dict[str, list[Any]] = {"id": ["a", "b#1"], "prompt_tokens": [3, 300]}


def test_a_length_needs_no_dataset() -> None:
    found = slice_rows(["length"], PREDICTIONS, None)
    assert found == {"length": ["1-128 tokens", "129-512 tokens"]}


@pytest.mark.parametrize("there", [False, True])
def test_a_dataset_that_is_not_here_is_told_and_not_taken_for_rows_without_the_field(
    tmp_path: Path, there: bool
) -> None:
    dataset = tmp_path / "test.jsonl" if there else None
    with pytest.raises(
        UserError, match=r"source, label cannot be told without .* not in the store"
    ):
        slice_rows(["length", "source", "label"], PREDICTIONS, dataset)


def test_a_field_that_no_row_has_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    dataset = tmp_path / "test.jsonl"
    rows = [{"id": "a", "lang": "de", "messages": []}, {"id": "b", "source": "x.py:3"}]
    dataset.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = slice_rows(["lang", "source"], PREDICTIONS, dataset)
    assert found == {"lang": ["de", None], "source": [None, "x.py"]}
    with pytest.raises(
        UserError, match="can be made by length, turns, lang, source; the dataset's"
    ):
        slice_rows(["colour"], PREDICTIONS, dataset)
    dataset.write_text('{"id": "a", "messages": []}', encoding="utf-8")
    with pytest.raises(UserError, match="can be made by length, turns; the dataset's"):
        slice_rows(["colour"], PREDICTIONS, dataset)
