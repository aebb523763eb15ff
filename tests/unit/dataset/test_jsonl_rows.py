import json
from pathlib import Path
from typing import Any

import pytest

from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.detecting import detect
from tasks.dataset.reading.opening import Opened, open_source
from tasks.dataset.rows import Row
from tasks.dataset.source_settings import JsonlSource
from tasks.errors import DataError

GOOD = {"prompt": "What is 2 + 2?", "completion": "4"}


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "rows.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def opened(path: Path, group: str | None = None) -> Opened:
    source = JsonlSource(type="jsonl", path=str(path), group=group)
    return open_source(source, path.parent, cache=path.parent / "cache")


def read(path: Path, group: str | None = None) -> list[Row]:
    bad = BadRows()
    rows = list(opened(path, group).rows(bad))
    bad.raise_if_any()
    return rows


def turns(row: Row) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row.messages]


QUESTION, ANSWER = ("user", "Why?"), ("assistant", "Because.")


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        (
            {
                "messages": [
                    {"role": "system", "content": "Be short."},
                    {"role": "user", "content": "Why?"},
                    {"role": "assistant", "content": "Because."},
                ]
            },
            "messages",
            [("system", "Be short."), QUESTION, ANSWER],
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
                    {"role": "assistant", "content": "Because."},
                ]
            },
            "messages",
            [QUESTION, ANSWER],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Why?"},
                    {"from": "gpt", "value": "Because."},
                    {"from": "human", "value": "And?"},
                    {"from": "gpt", "value": "That is all."},
                ]
            },
            "conversations",
            [QUESTION, ANSWER, ("user", "And?"), ("assistant", "That is all.")],
        ),
        ({"prompt": "Why?", "completion": "Because."}, "prompt/completion", [QUESTION, ANSWER]),
        (
            {
                "prompt": [{"role": "user", "content": "Why?"}],
                "completion": [{"role": "assistant", "content": "Because."}],
            },
            "prompt/completion",
            [QUESTION, ANSWER],
        ),
        (
            {"instruction": "Why?", "input": "", "output": "Because."},
            "instruction/output",
            [QUESTION, ANSWER],
        ),
        (
            {"instruction": "Add.", "input": "1 and 2", "output": "3"},
            "instruction/output",
            [("user", "Add.\n\n1 and 2"), ("assistant", "3")],
        ),
    ],
)
def test_every_usual_chat_format_becomes_messages(
    tmp_path: Path, row: dict[str, Any], name: str, expected: list[tuple[str, str]]
) -> None:
    path = write(tmp_path, row)

    assert detect(path).format == name
    assert [turns(r) for r in read(path)] == [expected]


def test_an_instruction_with_several_instances_gives_a_row_each_in_one_group(
    tmp_path: Path,
) -> None:
    instances = [{"input": "1 and 2", "output": "3"}, {"input": "2 and 2", "output": "4"}]
    rows = read(write(tmp_path, {"instruction": "Add.", "instances": instances}))

    assert [row.messages[0]["content"] for row in rows] == ["Add.\n\n1 and 2", "Add.\n\n2 and 2"]
    assert len({row.group for row in rows}) == 1
    assert len({row.id for row in rows}) == 2


def message(role: str, content: Any = "text") -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("bad_line", "reason"),
    [
        ('{"prompt": "a", "completion": }', "broken JSON at column 31"),
        ("[]", "a JSON object is wanted, this is a list"),
        ("null", "this is null"),
        ({"prompt": None, "completion": "b"}, "prompt is null"),
        ({"prompt": "a", "completion": None}, "completion is null"),
        ({"prompt": "a", "completion": " \n"}, "completion is empty"),
        ({"prompt": "", "completion": "b"}, "prompt is empty"),
        ({"prompt": "a", "completion": 4}, "completion must be text"),
        ({"prompt": "a"}, "no column completion"),
        ('{"prompt": "a", "completion": "\\ud800"}', "half of a surrogate pair"),
        ({"messages": [message("user"), message("assistant")]}, "one file holds one format"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_reason(
    tmp_path: Path, bad_line: Any, reason: str
) -> None:
    path = write(tmp_path, *[GOOD] * 6, bad_line, GOOD)

    with pytest.raises(DataError) as caught:
        read(path)

    assert f"{path}:7: " in str(caught.value)
    assert reason in str(caught.value)
    assert str(caught.value).startswith("1 row is wrong:")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([message("user")], "ends with the user's turn"),
        ([message("assistant")], "messages[0] is the assistant's turn where the user's is due"),
        (
            [message("user"), message("user"), message("assistant")],
            "messages[1] is the user's turn where the assistant's is due",
        ),
        (
            [message("user"), message("system"), message("assistant")],
            "messages[1] is the system's turn",
        ),
        ([message("user"), message("tool"), message("assistant")], "messages[1].role is 'tool'"),
        ([message("user"), message("assistant", "")], "messages[1].content is empty"),
        ([message("user"), message("assistant", None)], "messages[1].content is null"),
        ([message("user"), "Because."], "messages[1] must be an object"),
        (
            [message("user", [{"type": "image_url"}]), message("assistant")],
            "parts that are not text",
        ),
        (
            [message("user"), {**message("assistant"), "tool_calls": [{"id": "1"}]}],
            "messages[1] has tool_calls",
        ),
        ([message("user"), {**message("assistant"), "weight": 0}], "messages[1] has weight 0"),
        ([message("system")], "no user and no assistant turn"),
        ([], "no user and no assistant turn"),
        (None, "messages is null"),
    ],
)
def test_a_conversation_out_of_order_is_refused_with_its_place(
    tmp_path: Path, messages: Any, reason: str
) -> None:
    path = write(tmp_path, {"messages": messages})

    with pytest.raises(DataError) as caught:
        read(path)

    assert f"{path}:1: " in str(caught.value)
    assert reason in str(caught.value)


def test_all_bad_rows_are_counted_and_the_first_twenty_shown(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, *["{"] * 33)

    with pytest.raises(DataError) as caught:
        read(path)

    text = str(caught.value)
    assert text.startswith("33 rows are wrong:")
    assert f"{path}:21: " in text
    assert f"{path}:22: " not in text
    assert "... and 13 more" in text


def test_a_last_line_that_is_cut_off_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:-6], encoding="utf-8")

    with pytest.raises(DataError, match=r"rows\.jsonl:2: broken JSON .* is it cut off\?"):
        read(path)


def test_a_complete_last_line_needs_no_line_break(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD), encoding="utf-8")

    assert len(read(path)) == 1


def test_a_wrong_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    latin = json.dumps({"prompt": "é", "completion": "b"}, ensure_ascii=False).encode("latin-1")
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + latin + b"\n")

    with pytest.raises(DataError, match=r"rows\.jsonl:2: not UTF-8 \(byte 0xe9"):
        read(path)


def test_byte_order_mark_windows_line_ends_and_blank_lines_are_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    other = json.dumps({**GOOD, "completion": "four"})
    text = "\ufeff" + json.dumps(GOOD) + "\r\n\r\n" + other + "\r\n\r\n"
    path.write_bytes(text.encode("utf-8"))
    source = opened(path)

    rows = list(source.rows(BadRows()))

    assert [row.source for row in rows] == ["rows.jsonl:1", "rows.jsonl:3"]
    counts = [source.counts[name] for name in ("lines", "blank_lines", "rows")]
    assert counts == [4, 2, 2]


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = json.dumps({"prompt": "a\u2028b", "completion": "c\x85d"}, ensure_ascii=False)
    path.write_text(row + "\n", encoding="utf-8")

    assert read(path)[0].messages[0]["content"] == "a\u2028b"


def test_an_unknown_format_names_the_columns_and_the_known_ones(tmp_path: Path) -> None:
    path = write(tmp_path, {"question": "a", "reply": "b"})

    with pytest.raises(DataError) as caught:
        read(path)

    assert f"{path}:1: unknown format; columns here: question, reply" in str(caught.value)
    assert "prompt/completion" in str(caught.value)


def test_a_row_that_fits_two_formats_is_not_guessed(tmp_path: Path) -> None:
    row = {"messages": [message("user"), message("assistant")], **GOOD}

    with pytest.raises(DataError, match="the columns fit messages and prompt/completion"):
        read(write(tmp_path, row))


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")

    with pytest.raises(DataError, match="holds no rows"):
        read(path)
    with pytest.raises(DataError, match="holds no rows"):
        detect(path)


def test_a_missing_file_is_refused_with_the_setting_to_correct(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No such file.*dataset\.sources\[\]\.path"):
        read(tmp_path / "absent.jsonl")


def test_the_group_column_decides_the_group(tmp_path: Path) -> None:
    path = write(tmp_path, {**GOOD, "doc": "a"}, {**GOOD, "doc": 7}, {**GOOD, "doc": "a"})

    groups = [row.group for row in read(path, group="doc")]

    assert groups == ["doc-a", "doc-7", "doc-a"]


@pytest.mark.parametrize("extra", [{}, {"doc": None}, {"doc": ""}, {"doc": True}, {"doc": [1]}])
def test_a_row_without_its_group_is_a_bad_row(tmp_path: Path, extra: dict[str, Any]) -> None:
    path = write(tmp_path, {**GOOD, "doc": "a"}, {**GOOD, **extra})

    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*'doc'"):
        read(path, group="doc")


def test_prompts_that_differ_in_case_and_layout_share_a_group(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"prompt": "Say  hello", "completion": "hello"},
        {"prompt": "say\nHELLO ", "completion": "hi"},
        {"prompt": "Say goodbye", "completion": "bye"},
    )

    first, second, third = (row.group for row in read(path))

    assert first == second != third


def test_a_conversation_and_its_beginning_share_a_group(tmp_path: Path) -> None:
    start = [message("user", "Hello"), message("assistant", "Hi")]
    longer = [*start, message("user", "More"), message("assistant", "There is no more")]

    first, second = read(write(tmp_path, {"messages": start}, {"messages": longer}))

    assert first.group == second.group
    assert first.id != second.id


def test_columns_that_are_not_used_are_reported(tmp_path: Path) -> None:
    path = write(tmp_path, {**GOOD, "doc": "a", "stars": 3})
    source = opened(path, group="doc")

    list(source.rows(BadRows()))

    assert source.counts["ignored_columns"] == ["stars"]
    assert detect(path).ignored == ("doc", "stars")
    assert detect(path).columns == ("prompt", "completion", "doc", "stars")
