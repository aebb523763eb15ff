"""A split that leaves a side empty says where the rows went."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.dataset.settings import DatasetSettings
from tasks.dataset.work import prepare_dataset
from tasks.errors import DataError
from tasks.store import Store


def refusal(folder: Path, rows: list[dict[str, str]], **more: Any) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"type": "jsonl", "path": "rows.jsonl", **more.pop("source", {})}
    settings = DatasetSettings.model_validate({"sources": [source], **more})
    with pytest.raises(DataError) as error:
        prepare_dataset(Store(folder / "store"), settings, salt="x", recipe_folder=folder)
    return str(error.value)


def test_thirty_copies_of_one_row_are_told_as_copies(tmp_path: Path) -> None:
    text = refusal(tmp_path, [{"prompt": "Question?", "completion": "Answer."}] * 30)
    assert "1 row in 1 group (30 rows were read; left out: 29 × same prompt and answer)," in text


def test_nothing_is_said_of_copies_where_there_are_none(tmp_path: Path) -> None:
    text = refusal(tmp_path, [{"prompt": "Question?", "completion": "Answer."}])
    assert "1 row in 1 group, dataset.split.test is" in text


def test_rows_of_one_prompt_are_told_as_one_group_with_the_way_out(tmp_path: Path) -> None:
    rows = [{"prompt": "Write a haiku.", "completion": f"Haiku {i}"} for i in range(30)]
    text = refusal(tmp_path, rows, cleaning={"near_duplicates": None})
    assert "30 rows in 1 group" in text
    assert "all 30 rows are in group 'prompt-" in text
    assert "(for example rows.jsonl:1)" in text
    assert "name a column that tells the rows apart as dataset.sources[].group" in text


@pytest.mark.parametrize(
    ("split", "asked"),
    [
        ({"after": "2027-01-01"}, "leaves no test row: 3 rows in 3 groups. dataset.split.after is"),
        (
            {"after": "2020-01-01"},
            "leaves no train row: 3 rows in 3 groups. dataset.split.after is",
        ),
        ({"newest_days": 900}, "dataset.split.newest_days is 900, and the rows are from"),
    ],
)
def test_a_split_by_time_is_explained_by_times(tmp_path: Path, split: dict, asked: str) -> None:
    rows = [
        {"prompt": f"Question {i}", "completion": f"Answer {i}", "time": f"2026-0{i}-01"}
        for i in (1, 2, 3)
    ]
    text = refusal(tmp_path, rows, split=split, source={"time": "time"})
    assert asked in text
    assert "from 2026-01-01T00:00:00+00:00 to 2026-03-01T00:00:00+00:00" in text
    assert "salt" not in text


@pytest.mark.parametrize("cleaning", [{}, {"contamination": None}])
def test_a_train_side_of_the_test_sides_prompts_is_told_in_its_own_words(
    tmp_path: Path, cleaning: dict[str, Any]
) -> None:
    rows = [
        {"prompt": "Tell of the river", "completion": f"Tale {i}", "doc": f"d{i}"}
        for i in range(12)
    ]
    text = refusal(tmp_path, rows, source={"group": "doc"}, split={"test": 0.5}, cleaning=cleaning)
    assert text.startswith("No train row is left: all ")
    assert "have the prompt of one of " in text
    assert "for example the one of rows.jsonl:" in text
    assert "Take dataset.sources[].group out" in text


def test_a_holdout_that_cleaning_empties_is_refused_beside_test_rows(tmp_path: Path) -> None:
    (tmp_path / "frozen.jsonl").write_text(
        json.dumps({"prompt": "Whose is erika@firma-beispiel.de?", "completion": "Hers."})
    )
    rows = [{"prompt": f"Question {i}", "completion": f"Answer {i}"} for i in range(60)]
    text = refusal(
        tmp_path,
        rows,
        split={"test": 0.3},
        holdout={"type": "files", "path": "frozen.jsonl"},
        cleaning={"personal_data": {"policy": "drop"}},
    )
    assert text.startswith("dataset.holdout leaves no row to evaluate")
    assert "1 × personal data: email" in text


def test_what_cleaning_and_limits_took_is_named_by_its_reason(tmp_path: Path) -> None:
    rows = [{"prompt": f"Mail {i}@firma-beispiel.de", "completion": "Yes"} for i in range(4)]
    rows += [{"prompt": f"Question {i}", "completion": "No"} for i in range(3)]
    text = refusal(
        tmp_path,
        rows,
        cleaning={"personal_data": {"policy": "drop"}, "length": {"min_answer_characters": 3}},
    )
    assert "leaves no train row: 0 rows in 0 groups (7 rows were read; left out: " in text
    assert "4 × personal data: email" in text
    assert "3 × answer shorter than 3 characters" in text


def test_rows_that_are_all_bad_are_called_bad_though_so_many_may_be(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}", "completion": ""} for i in range(5)]
    text = refusal(tmp_path, rows, max_bad_rows=10)
    assert text.startswith("All 5 rows are bad, and none is left")
    assert "dataset.max_bad_rows is 10" in text
    assert "rows.jsonl:1: completion is empty" in text


def test_bad_rows_are_counted_among_what_left_a_side_empty(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}", "completion": "" if i else "Yes"} for i in range(5)]
    text = refusal(tmp_path, rows, max_bad_rows=10)
    assert "1 row in 1 group (5 rows were read; left out: 4 × bad rows, which" in text


@pytest.mark.parametrize("name", ["rows.jsonl", "copy.jsonl"])
def test_a_holdout_that_is_the_source_itself_is_named(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": f"Question {i}", "completion": f"Answer {i}"} for i in range(60)]
    (tmp_path / "copy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = refusal(tmp_path, rows, holdout={"type": "jsonl", "path": name})
    assert text.startswith(f"dataset.holdout ({name}) holds the very rows of the source rows.jsonl")
