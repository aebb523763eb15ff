"""What stands beside the turns of a row, and in them, is used or told."""

import json
from typing import Any

import pytest

TOOL = {"name": "lookup", "description": "d", "parameters": {"type": "object"}}
USER = {"role": "user", "content": "How?"}
ANSWER = {"role": "assistant", "content": "So."}
OTHER = {"role": "assistant", "content": "No."}

FORMATS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER, ANSWER]},
    "conversations": {
        "conversations": [{"from": "human", "value": "How?"}, {"from": "gpt", "value": "So."}]
    },
    "prompt/completion": {"prompt": "How?", "completion": "So."},
    "prompt/completion as turns": {"prompt": [USER], "completion": [ANSWER]},
    "prompt/completion/label": {"prompt": "How?", "completion": "So.", "label": True},
    "prompt/chosen/rejected": {"prompt": "How?", "chosen": "So.", "rejected": "No."},
    "prompt repeated": {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
    "chosen/rejected": {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
}


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("name", FORMATS)
def test_the_system_prompt_and_the_tools_of_every_format_are_in_the_row(
    name: str, write, reader
) -> None:
    write("a.jsonl", lines({**FORMATS[name], "system": "Be brief.", "tools": [TOOL]}))

    reading = reader(path="a.jsonl")

    (row,) = reading.rows
    assert reading.turns() == [
        [("system", "Be brief."), ("user", "How?"), ("assistant", "So.")],
    ]
    assert [tool["function"]["name"] for tool in row.tools] == ["lookup"]
    assert (
        reading.source.counts["mapping"].items() >= {"system": "system", "tools": "tools"}.items()
    )
    assert reading.source.counts["ignored_columns"] == []
    if "rejected" in FORMATS[name]:
        assert row.rejected == (OTHER,)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "How?", "output": "So."},
        {"instruction": "How?", "instances": [{"input": "", "output": "So."}]},
    ],
)
def test_the_system_prompt_of_an_instruction_is_in_the_row(row, write, reader) -> None:
    write("a.jsonl", lines({**row, "system": "Be brief."}))

    assert reader(path="a.jsonl").turns()[0][0] == ("system", "Be brief.")


@pytest.mark.parametrize(
    "name", ["messages", "conversations", "prompt repeated", "chosen/rejected"]
)
def test_two_system_prompts_of_one_row_must_say_the_same(name: str, write, reader) -> None:
    def row(system: str) -> dict[str, Any]:
        key = "from" if name == "conversations" else "role"
        text = "value" if name == "conversations" else "content"
        first = {key: "system", text: "Be brief."}
        turns = {
            column: [first, *value]
            for column, value in FORMATS[name].items()
            if isinstance(value, list)
        }
        return {**FORMATS[name], **turns, "system": system}

    write("a.jsonl", lines(row("Be brief."), row("Be long."), row("")))

    reading = reader(path="a.jsonl", bad=_allowed(1))

    assert reading.bad.count == 1
    assert "a.jsonl:2: the column system and the system turn" in reading.bad._shown[0]
    assert [[role for role, _ in turns] for turns in reading.turns()] == [
        ["system", "user", "assistant"]
    ] * 2


def test_a_system_turn_within_both_endings_of_a_pair_is_no_turn_of_the_answer(
    write, reader
) -> None:
    system = {"role": "system", "content": "Be brief."}
    row = {
        "prompt": [USER],
        "chosen": [system, USER, ANSWER],
        "rejected": [system, USER, OTHER],
        "system": "Be brief.",
    }
    write("a.jsonl", lines(row))

    (found,) = reader(path="a.jsonl").rows

    assert found.messages == (system, USER, ANSWER)
    assert found.rejected == (OTHER,)


def test_keys_of_messages_that_are_not_used_are_told_in_the_card(write, reader) -> None:
    user = {**USER, "name": "Bob", "id": None, "parts": []}
    answer = {**ANSWER, "reasoning_content": "Hm.", "train": True, "weight": 1}
    write("a.jsonl", lines({"messages": [USER, ANSWER], "id": 1}, {"messages": [user, answer]}))

    reading = reader(path="a.jsonl")

    assert reading.source.counts["ignored_columns"] == [
        "id",
        "messages[].name",
        "messages[].reasoning_content",
        "messages[].train",
    ]


@pytest.mark.parametrize("key", ["train", "loss", "mask"])
@pytest.mark.parametrize("value", [False, 0, "false"])
def test_an_answer_that_others_would_not_train_is_refused_with_our_way_to_say_it(
    key: str, value: Any, write, reader
) -> None:
    marked = {"messages": [USER, {**ANSWER, key: value}, USER, ANSWER]}
    of_user = {"messages": [{**USER, key: value}, ANSWER]}
    write("a.jsonl", lines(of_user, marked))

    reading = reader(path="a.jsonl", bad=_allowed(1))

    (told,) = reading.bad._shown
    assert f"a.jsonl:2: messages[1].{key} is {value!r}" in told
    assert "write `weight: 0`" in told


def _allowed(count: int) -> Any:
    from tasks.dataset.reading.bad_rows import BadRows

    return BadRows(count)
