"""Every usual way to write conversations becomes the same messages, and what is no conversation is refused."""

import json
from typing import Any

import pytest

from tasks.dataset.reading.counts import TableCounts
from tasks.dataset.reading.mapping import Mapping
from tasks.dataset.rows import Row
from tasks.errors import DataError

ASK = {"role": "user", "content": "Why?"}
SAY = {"role": "assistant", "content": "Because."}
WORSE = {"role": "assistant", "content": "No idea."}
RULE = {"role": "system", "content": "Be short."}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'},
}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "type": "function",
            "id": "c1",
            "function": {"name": "add", "arguments": {"a": 1, "b": 2}},
        }
    ],
}
RESULT = {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"}
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
}


@pytest.fixture
def row(reader, write) -> Any:
    """The one row of a JSONL file that holds one object."""

    def read(value: dict[str, Any], **source: Any) -> Row:
        write("rows.jsonl", json.dumps(value) + "\n")
        (only,) = reader(path="rows.jsonl", **source).rows
        return only

    return read


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"messages": [{"role": "developer", "content": "Be short."}, ASK, SAY]}, [RULE, ASK, SAY]),
        ({"messages": [ASK, SAY], "system": "Be short."}, [RULE, ASK, SAY]),
        ({"messages": [ASK, SAY], "system": ""}, [ASK, SAY]),
        ({"messages": json.dumps([ASK, SAY])}, [ASK, SAY]),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be short."},
                    {"from": "human", "value": "Why?"},
                    {"from": "gpt", "value": "Because."},
                ]
            },
            [RULE, ASK, SAY],
        ),
        ({"conversations": [ASK, SAY]}, [ASK, SAY]),
        ({"instruction": "Why?", "output": "Because.", "system": "Be short."}, [RULE, ASK, SAY]),
        # The original Alpaca file carries the rendered text too.
        ({"instruction": "Why?", "input": "", "output": "Because.", "text": "### ..."}, [ASK, SAY]),
        ({"prompt": "Why?", "completion": "Because.", "system": "Be short."}, [RULE, ASK, SAY]),
        ({"prompt": [RULE, ASK], "completion": [SAY]}, [RULE, ASK, SAY]),
    ],
)
def test_system_prompts_and_spellings_of_the_wild_are_understood(row, value, expected) -> None:
    assert list(row(value).messages) == expected


def test_tool_turns_keep_their_calls_and_results(row) -> None:
    found = row({"messages": [ASK, {**SAY, "content": None, "tool_calls": [CALL]}, RESULT, SAY]})

    assert list(found.messages) == [ASK, CALLED, RESULT, SAY]


def test_a_row_may_end_with_a_call(row) -> None:
    """That is what most sets for tool calling teach."""
    found = row({"messages": [ASK, {"role": "assistant", "tool_calls": [CALL]}]})

    assert list(found.messages) == [ASK, CALLED]


def test_sharegpt_calls_and_observations_are_tool_turns(row) -> None:
    turns = [
        {"from": "human", "value": "Why?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "Because."},
    ]

    found = row({"conversations": turns, "tools": json.dumps([TOOL["function"]])})

    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert list(found.messages) == [
        ASK,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
        SAY,
    ]
    assert found.tools == (TOOL,)


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]]])
def test_tools_become_schemas_in_one_form(row, tools) -> None:
    assert row({"messages": [ASK, SAY], "tools": tools}).tools == (TOOL,)


@pytest.mark.parametrize("tools", [None, "", "null", []])
def test_no_tools_are_none(row, tools) -> None:
    assert row({"messages": [ASK, SAY], "tools": tools}).tools == ()


def test_a_turn_of_weight_zero_is_kept_and_marked(row) -> None:
    first = {**SAY, "weight": 0}

    found = row({"messages": [ASK, first, {**ASK, "content": "And?"}, {**SAY, "weight": 1}]})

    assert [message.get("weight") for message in found.messages] == [None, 0, None, None]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([ASK, RESULT, SAY], "messages[1].role is 'tool', which must follow an assistant turn"),
        (
            [ASK, SAY, RESULT, SAY],
            "messages[2].role is 'tool', which must follow an assistant turn",
        ),
        ([ASK, CALLED, SAY], "messages[2] is the assistant's turn where the tool's is due"),
        ([ASK, CALLED, RESULT, RESULT, SAY], "messages[3].role is 'tool', which must follow"),
        ([ASK, CALLED, RESULT], "ends with the tool's turn, not with an answer"),
        ([ASK, CALLED, RESULT, ASK, SAY], "messages[3] is the user's turn where the assistant's"),
        ([ASK, {**SAY, "tool_calls": [{"id": "1"}]}], "messages[1] has tool_calls[0] names no"),
        ([ASK, {**SAY, "tool_calls": "x"}], "messages[1] has tool_calls holds broken JSON"),
        (
            [ASK, {**SAY, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "tool_calls[0].arguments holds broken JSON",
        ),
        ([ASK, {**SAY, "weight": 2}], "messages[1].weight is 2"),
        ([ASK, {**SAY, "weight": 0}], "messages[1] has weight 0 and is the only answer"),
        ([RULE, RULE, ASK, SAY], "messages[1] is the system's turn where the user's is due"),
        ([ASK, {**RESULT, "role": "robot"}, SAY], "messages[1].role is 'robot'; known roles"),
        ([{"role": None, "content": "a"}], "messages[0].role is None"),
    ],
)
def test_turns_out_of_order_are_refused_with_their_place(row, messages, reason) -> None:
    with pytest.raises(DataError) as caught:
        row({"messages": messages})

    assert "rows.jsonl:1: " in str(caught.value)
    assert reason in str(caught.value)


def test_two_calls_want_two_results(row) -> None:
    called = {**CALLED, "tool_calls": CALLED["tool_calls"] * 2}

    assert len(row({"messages": [ASK, called, RESULT, RESULT, SAY]}).messages) == 5
    with pytest.raises(DataError, match=r"messages\[3\] is the assistant's turn where the tool's"):
        row({"messages": [ASK, called, RESULT, SAY]})


# Preference pairs


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea."},
        {"prompt": [ASK], "chosen": [SAY], "rejected": [WORSE]},
        {"prompt": "Why?", "chosen": [ASK, SAY], "rejected": [ASK, WORSE]},
        {"chosen": [ASK, SAY], "rejected": [ASK, WORSE]},
    ],
)
def test_a_preference_pair_keeps_both_endings(row, value) -> None:
    found = row(value)

    assert list(found.messages) == [ASK, SAY]
    assert list(found.rejected) == [WORSE]


def test_a_preference_pair_of_several_turns_parts_where_the_answers_do(row) -> None:
    more = {"role": "user", "content": "And?"}

    found = row({"chosen": [RULE, ASK, SAY, more, SAY], "rejected": [RULE, ASK, SAY, more, WORSE]})

    assert list(found.messages) == [RULE, ASK, SAY, more, SAY]
    assert list(found.rejected) == [WORSE]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected is null"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "rejected is empty"),
        (
            {"prompt": [ASK], "chosen": [SAY], "rejected": [ASK]},
            "prompt + rejected ends with the user's",
        ),
        ({"chosen": [SAY], "rejected": [WORSE]}, "begin with different turns"),
        (
            {"prompt": [ASK], "chosen": [SAY, ASK, SAY], "rejected": [WORSE]},
            "chosen has 3 turns where rejected has 1",
        ),
        ({"chosen": "b", "rejected": "c"}, "chosen must be a list"),
    ],
)
def test_a_pair_without_two_answers_is_a_bad_row(row, value, reason) -> None:
    with pytest.raises(DataError) as caught:
        row(value)

    assert reason in str(caught.value)


@pytest.mark.parametrize("text", ['[{"id": 1}]', "[{broken"])
def test_a_text_that_looks_like_json_stays_a_text(row, text) -> None:
    """Structured answers are trained too."""
    assert row({"prompt": text, "completion": text}).messages[1]["content"] == text
    assert row({"prompt": "a", "chosen": text, "rejected": "b"}).messages[1]["content"] == text


# What decides the format


STORY = {"text": "Once upon a time.", "author": "A. Nonymous"}


def test_a_text_with_metadata_is_a_text_row(row) -> None:
    found = row(STORY)

    assert (found.text, found.messages, found.answer) == (STORY["text"], (), STORY["text"])
    assert row({"text": "Once  upon a TIME."}).group == found.group
    assert row({"text": "Once  upon a TIME."}).id != found.id
    assert row({"text": "Twice upon a time."}).group != found.group


def test_a_template_makes_a_text_of_several_columns(row) -> None:
    found = row(
        {"title": "Tale", "body": STORY["text"]}, columns={"text": "{{ title }}: {{ body }}"}
    )

    assert found.text == "Tale: Once upon a time."
    assert found.messages == ()


@pytest.mark.parametrize("beside", ["label", "summary", "question"])
def test_a_text_beside_what_may_be_its_answer_is_settled_by_the_recipe(row, beside: str) -> None:
    value = {"text": "I liked it.", beside: "positive"}

    with pytest.raises(
        DataError, match=rf"\({beside}\)\? `chat_format: text` trains the text alone"
    ):
        row(value)
    assert row(value, chat_format="text").text == "I liked it."
    columns = {"user": "{{ text }}", "assistant": f"{{{{ {beside} }}}}"}
    assert row(value, columns=columns).messages[1]["content"] == "positive"


@pytest.mark.parametrize("text", [None, "", "  ", 3])
def test_an_empty_text_is_a_bad_row(row, text: object) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: text (is null|is empty|must be text)"):
        row({"text": text})


def test_columns_that_fit_two_formats_are_settled_by_the_recipe(row) -> None:
    value = {"messages": [ASK, SAY], "prompt": "Why?", "chosen": "Because.", "rejected": "Hm."}

    with pytest.raises(DataError, match=r"fit messages and prompt/chosen/rejected.*chat_format"):
        row(value)
    assert row(value, chat_format="messages").rejected == ()
    assert row(value, chat_format="prompt/chosen/rejected").rejected


def test_a_format_that_changes_between_the_files_of_a_source_is_refused(reader, write) -> None:
    write("chats/a.jsonl", json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    write("chats/b.jsonl", json.dumps({"instruction": "a", "output": "b"}) + "\n")

    with pytest.raises(DataError) as caught:
        reader(path="chats")

    assert "b.jsonl:1: no column prompt and no completion: the source is" in str(caught.value)
    assert "prompt/completion since a.jsonl:1" in str(caught.value)
    assert "columns here: instruction, output" in str(caught.value)


def test_the_detected_mapping_is_shown(reader, write) -> None:
    value = {"instruction": "a", "input": "b", "output": "c", "system": "d", "ticket": 7, "x": 1}
    write("rows.jsonl", json.dumps(value) + "\n")

    counts = reader(path="rows.jsonl", group="ticket").source.counts

    assert counts["chat_format"] == "instruction/output"
    assert counts["mapping"] == {
        "user": "instruction + input",
        "assistant": "output",
        "system": "system",
        "group": "ticket",
    }
    assert counts["ignored_columns"] == ["x"]


# Group, time and slice


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-03-01", "2026-03-01T00:00:00.000000+00:00"),
        ("2026-03-01T10:00:00+02:00", "2026-03-01T08:00:00.000000+00:00"),
        ("2026-03-01 10:00:00.5Z", "2026-03-01T10:00:00.500000+00:00"),
        (1772359200, "2026-03-01T10:00:00.000000+00:00"),
        (1772359200000, "2026-03-01T10:00:00.000000+00:00"),
        (1772359200.25, "2026-03-01T10:00:00.250000+00:00"),
        # As tables of text hold them.
        ("1772359200", "2026-03-01T10:00:00.000000+00:00"),
        ("1772359200000", "2026-03-01T10:00:00.000000+00:00"),
        (" 1772359200.25 ", "2026-03-01T10:00:00.250000+00:00"),
        ("20260301", "2026-03-01T00:00:00.000000+00:00"),
    ],
)
def test_a_time_becomes_utc_and_sorts_as_text(row, value, expected) -> None:
    assert row({"messages": [ASK, SAY], "at": value}, time="at").time == expected


@pytest.mark.parametrize("value", ["yesterday", "", None, True, [1], 1e30])
def test_what_is_no_time_is_a_bad_row(row, value) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the time column 'at'"):
        row({"messages": [ASK, SAY], "at": value}, time="at")


def test_a_row_without_its_time_or_slice_column_is_a_bad_row(row) -> None:
    for part in ("time", "slice"):
        with pytest.raises(DataError, match=rf"no column 'x', which dataset.sources\[\].{part}"):
            row({"messages": [ASK, SAY]}, **{part: "x"})


@pytest.mark.parametrize(("value", "expected"), [("de", "de"), (3, "3"), (None, "(none)")])
def test_a_slice_is_text(row, value, expected) -> None:
    assert row({"messages": [ASK, SAY], "lang": value}, slice="lang").slice == expected


def test_a_table_gives_times_as_the_database_has_them() -> None:
    from datetime import date, datetime

    from tasks.dataset.source_settings import FilesSource

    source = FilesSource(type="files", path="x", time="at")
    mapping = Mapping(source, TableCounts())
    times = [
        mapping.rows({"prompt": "a", "completion": "b", "at": at}, "x:1")[0].time
        for at in (date(2026, 3, 1), datetime(2026, 3, 1, 10))
    ]

    assert times == ["2026-03-01T00:00:00.000000+00:00", "2026-03-01T10:00:00.000000+00:00"]


def test_a_whole_number_as_a_float_is_the_group_of_that_number(row) -> None:
    """A column with a null among its whole numbers holds floats in pandas and in Parquet."""
    groups = [row({"messages": [ASK, SAY], "doc": doc}, group="doc").group for doc in (3, 3.0)]

    assert groups == ["doc-3", "doc-3"]
    for doc in (3.5, float("nan"), float("inf")):
        with pytest.raises(DataError, match="must hold text or a whole number"):
            row({"messages": [ASK, SAY], "doc": doc}, group="doc")
