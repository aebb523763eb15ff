"""Answers that were judged one by one: recognised, carried to the dataset's lines, and never mixed up."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.dataset.cleaning.near import NearDuplicates
from tasks.dataset.cleaning_settings import NearDuplicateSettings
from tasks.dataset.rows import Row
from tasks.dataset.settings import DatasetSettings
from tasks.dataset.spool import as_line, from_line
from tasks.dataset.work import prepare_dataset
from tasks.errors import DataError
from tasks.store import Store

ASK = [{"role": "user", "content": "Why?"}]
SAY = [{"role": "assistant", "content": "Because."}]


@pytest.fixture
def judged(reader, write):
    """Read rows of prompt, completion and the label given for each."""

    def read(*labels: Any, **source: Any) -> list[Row]:
        rows = [
            {"prompt": f"Why {n}?", "completion": f"Because {n}.", "label": label}
            for n, label in enumerate(labels)
        ]
        write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        found: list[Row] = reader(path="rows.jsonl", **source).rows
        return found

    return read


def test_a_boolean_label_is_a_verdict_on_the_answer(judged, reader) -> None:
    rows = judged(True, False)
    assert [row.desirable for row in rows] == [True, False]
    assert [m["role"] for m in rows[0].messages] == ["user", "assistant"]
    counts = reader(path="rows.jsonl").source.counts
    assert counts["chat_format"] == "prompt/completion/label"
    assert counts["mapping"] == {
        "user": "prompt",
        "assistant": "completion",
        "desirable": "label",
    }


def test_a_label_that_is_a_class_or_a_score_is_no_verdict(judged) -> None:
    for label in ("spam", 1, 0, 0.5, None):
        assert [row.desirable for row in judged(label)] == [None]


@pytest.mark.parametrize(("text", "desirable"), [("true", True), ("False", False)])
def test_a_table_of_text_says_its_verdicts_in_words(reader, write, text, desirable) -> None:
    write("rows.csv", f"prompt,completion,label\nWhy?,Because.,{text}\n")
    (row,) = reader(path="rows.csv").rows
    assert row.desirable is desirable


def test_the_recipe_may_name_the_format_of_ones_and_zeros(judged) -> None:
    rows = judged(1, 0, chat_format="prompt/completion/label")
    assert [row.desirable for row in rows] == [True, False]


def test_the_recipe_may_leave_verdicts_unread(judged) -> None:
    assert [row.desirable for row in judged(True, chat_format="prompt/completion")] == [None]


def test_lists_of_messages_can_be_judged_too(reader, write) -> None:
    row = {"prompt": ASK, "completion": SAY, "label": False}
    write("rows.jsonl", json.dumps(row) + "\n")
    (found,) = reader(path="rows.jsonl").rows
    assert (found.messages, found.desirable) == ((*ASK, *SAY), False)


@pytest.mark.parametrize("label", [None, "spam", 2])
def test_a_row_without_a_verdict_among_judged_ones_is_a_bad_row(judged, label) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2: label must be true .*or false, this is"):
        judged(True, label)


def test_a_verdict_behind_rows_without_one_is_a_bad_row(judged) -> None:
    with pytest.raises(DataError, match=r"jsonl:2: label is False, a verdict.*since rows\.jsonl:1"):
        judged(None, False)


def test_columns_say_what_a_good_answer_is(reader, write) -> None:
    rows = [{"q": "Why?", "a": "Because.", "stars": n} for n in (5, 1)]
    write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    columns = {"user": "{{ q }}", "assistant": "{{ a }}", "desirable": "{{ stars > 3 }}"}
    found = reader(path="rows.jsonl", columns=columns).rows
    assert [row.desirable for row in found] == [True, False]
    with pytest.raises(DataError, match=r"columns\.desirable must be true .*this is '5'"):
        reader(path="rows.jsonl", columns=columns | {"desirable": "{{ stars }}"})


def test_a_pair_is_not_judged_as_well() -> None:
    columns = {"user": "{{ q }}", "assistant": "{{ a }}"}
    columns |= {"rejected": "{{ b }}", "desirable": "{{ c }}"}
    with pytest.raises(ValueError, match="`rejected` compares two answers and `desirable` judges"):
        DatasetSettings.model_validate(
            {"sources": [{"type": "files", "path": "x", "columns": columns}]}
        )


def test_the_verdict_is_part_of_what_a_row_teaches_and_of_its_line() -> None:
    plain, good, bad = (
        Row(messages=(*ASK, *SAY), group="g", source="s", desirable=desirable)
        for desirable in (None, True, False)
    )
    assert len({plain.id, good.id, bad.id}) == 3
    # Rows without a verdict are named and written as ever.
    assert plain.id == "38b4d8b51a77609d"
    assert b"desirable" not in as_line(plain)
    assert [from_line(as_line(row)).desirable for row in (good, bad)] == [True, False]


def test_a_good_and_a_bad_answer_are_never_near_copies() -> None:
    words = tuple({**m, "content": m["content"] + " and so on" * 30} for m in (*ASK, *SAY))
    found = NearDuplicates(NearDuplicateSettings(), 3)
    for desirable in (True, False, True):
        found.add(Row(messages=words, group="g", source="s", desirable=desirable))
    assert found.clusters().tolist() == [0, 1, 0]


def test_the_dataset_keeps_both_verdicts_and_shows_them(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Why {n}?", "completion": f"Because {n} times.", "label": n % 3 > 0}
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DatasetSettings.model_validate(
        {"sources": [{"type": "files", "path": "rows.jsonl"}], "split": {"test": 0.3}}
    )
    dataset = prepare_dataset(Store(tmp_path / "store"), settings, salt="s", recipe_folder=tmp_path)
    lines = [
        json.loads(line)
        for side in ("train", "test")
        for line in (dataset.path / f"{side}.jsonl").read_text().splitlines()
    ]
    assert {line["messages"][0]["content"]: line["desirable"] for line in lines} == {
        row["prompt"]: row["label"] for row in rows
    }
    summary = (dataset.path / "summary.md").read_text()
    assert "**assistant, good**" in summary or "**assistant, bad**" in summary
