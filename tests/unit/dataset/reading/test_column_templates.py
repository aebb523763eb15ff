"""The recipe's own templates make turns of any columns, and never of what is not there."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.dataset.column_settings import ColumnsSettings
from tasks.errors import DataError

PAIR = {"user": "{{ question }}", "assistant": "{{ answer }}"}


@pytest.fixture
def turns(reader, write) -> Any:
    def read(value: dict[str, Any], **columns: str) -> list[tuple[str, str]]:
        write("rows.jsonl", json.dumps(value) + "\n")
        return reader(path="rows.jsonl", columns=columns).turns()[0]

    return read


def test_templates_make_the_turns(turns) -> None:
    found = turns(
        {"question": "Why?", "product": "lamp", "answer": "Because."},
        system="You sell {{ product | upper }}s.",
        user="{{ product }}: {{ question }}\n",
        assistant="{{ answer }}",
    )

    assert found == [
        ("system", "You sell LAMPs."),
        ("user", "lamp: Why?\n"),
        ("assistant", "Because."),
    ]


def test_a_system_prompt_may_be_the_same_in_every_row(turns) -> None:
    assert turns({"question": "a", "answer": "b"}, system="Be kind.", **PAIR)[0] == (
        "system",
        "Be kind.",
    )


def test_a_column_whose_name_is_no_word_is_reached_through_the_row(turns) -> None:
    found = turns(
        {"Question text": "Why?", "answer": "b"},
        user='{{ row["Question text"] }}',
        assistant="{{ answer }}",
    )

    assert found[0] == ("user", "Why?")


def test_numbers_and_loops_are_written_out(turns) -> None:
    found = turns(
        {"n": 3, "steps": ["a", "b"], "facts": {"x": 1}},
        user="{{ n }} steps of {{ facts | tojson }}",
        assistant="{% for step in steps %}- {{ step }}\n{% endfor %}",
    )

    assert found == [("user", '3 steps of {"x": 1}'), ("assistant", "- a\n- b\n")]


def test_markup_in_a_column_stays_what_it_is(turns) -> None:
    found = turns({"question": "{{ answer }} <b>&", "answer": "{% x %}"}, **PAIR)

    assert found == [("user", "{{ answer }} <b>&"), ("assistant", "{% x %}")]


@pytest.mark.parametrize(
    ("value", "columns", "reason"),
    [
        (
            {"question": "a"},
            PAIR,
            "columns.assistant: 'answer' is undefined; columns here: question",
        ),
        ({"question": None, "answer": "b"}, PAIR, "columns.user: a column is null"),
        ({"question": ["a"], "answer": "b"}, PAIR, "columns.user: a column is a list"),
        ({"question": "a", "answer": " "}, PAIR, "columns.assistant comes out empty"),
        ({"question": "a", "answer": 0}, {**PAIR, "user": "{{ 1 / answer }}"}, "division by zero"),
        ({"question": "a", "answer": "b"}, {**PAIR, "rejected": "{{ answer }}"}, "say the same"),
    ],
)
def test_what_a_template_cannot_say_is_a_bad_row(turns, value, columns, reason) -> None:
    with pytest.raises(DataError) as caught:
        turns(value, **columns)

    assert "rows.jsonl:1: " in str(caught.value)
    assert reason in str(caught.value)


def test_a_null_may_be_allowed(turns) -> None:
    found = turns(
        {"question": "a", "hint": None, "answer": "b"},
        user='{{ question }}{{ hint or "" }}{{ more | default("!") }}',
        assistant="{{ answer }}",
    )

    assert found[0] == ("user", "a!")


def test_a_template_cannot_reach_the_machine(turns) -> None:
    with pytest.raises(DataError, match="unsafe"):
        turns(
            {"question": "a", "answer": "b"},
            user="{{ question.__class__.__mro__ }}",
            assistant="{{ answer }}",
        )


def test_a_worse_answer_makes_a_preference_pair(reader, write) -> None:
    write("rows.jsonl", json.dumps({"question": "a", "good": "b", "bad": "c"}) + "\n")
    columns = {"user": "{{ question }}", "assistant": "{{ good }}", "rejected": "{{ bad }}"}

    (row,) = reader(path="rows.jsonl", columns=columns).rows

    assert row.rejected == ({"role": "assistant", "content": "c"},)


def test_a_template_that_is_none_is_refused_before_a_row_is_read(reader, write) -> None:
    write("rows.jsonl", json.dumps({"question": "a", "answer": "b"}) + "\n")

    with pytest.raises(DataError, match=r"columns\.user is not a Jinja template"):
        reader(path="rows.jsonl", columns={**PAIR, "user": "{{ question"})


def test_used_and_unused_columns_are_shown(reader, write) -> None:
    write("rows.jsonl", json.dumps({"question": "a", "answer": "b", "id": 3}) + "\n")

    counts = reader(path="rows.jsonl", columns=PAIR).source.counts

    assert (counts["chat_format"], counts["mapping"]) == ("columns", PAIR)
    assert counts["ignored_columns"] == ["id"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"user": "question", "assistant": "{{ answer }}"}, "Write `{{ question }}`"),
        ({"user": "{{ question }}", "assistant": "answer"}, "Write `{{ answer }}`"),
        ({"user": "{{ question }}", "assistant": "The answer."}, "Write `{{ column }}`"),
        ({"text": "body"}, "Write `{{ body }}`"),
        ({"text": "{{ body }}", "user": "Tell."}, "take user out"),
        ({"user": "Tell."}, "assistant missing"),
        ({}, "assistant and user missing"),
    ],
)
def test_templates_that_make_no_row_are_refused(columns, words) -> None:
    with pytest.raises(ValidationError) as caught:
        ColumnsSettings.model_validate(columns)

    assert words in str(caught.value)
