"""Whole numbers are kept as they are written, or the row is refused."""

import json
from typing import Any

import pytest

from tasks.dataset.reading.exact_json import loads
from tasks.errors import DataError

LONG = 10**22 + 7919
LARGEST = 2**64 - 1


@pytest.mark.parametrize(
    "text",
    [
        str(LONG),
        str(-LONG),
        str(LARGEST),
        str(LARGEST + 1),
        "9223372036854775807",
        '{"a": ["1234567890123456789012", 1.5, 12345678901234567890123]}',
        '["' + "9" * 40 + 'é"]',
    ],
)
def test_json_is_read_as_the_standard_library_reads_it(text: str) -> None:
    assert loads(text) == loads(text.encode()) == json.loads(text)


def row(i: int, **more: Any) -> str:
    return json.dumps({"q": f"How {i}?", "a": LONG + i, **more}) + "\n"


def test_a_long_number_in_a_column_is_trained_as_it_is_written(write, reader) -> None:
    write("a.jsonl", row(0) + row(1))

    reading = reader(path="a.jsonl", columns={"user": "{{ q }}", "assistant": "{{ a }}"})

    assert [turns[1][1] for turns in reading.turns()] == [str(LONG), str(LONG + 1)]


def test_long_numbers_as_groups_are_different_groups(write, reader) -> None:
    rows = [{"prompt": f"{i}?", "completion": "So.", "g": LONG + i} for i in range(3)]
    write("a.jsonl", "".join(json.dumps(it) + "\n" for it in rows))

    assert [it.group for it in reader(path="a.jsonl", group="g").rows] == [
        f"g-{LONG + i}" for i in range(3)
    ]


def call(arguments: Any, name: str = "arguments") -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    answer = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    return {"messages": [{"role": "user", "content": "Go"}, answer]}


@pytest.mark.parametrize("as_text", [True, False])
def test_the_arguments_of_a_call_keep_what_64_bits_hold_and_refuse_the_rest(
    as_text: bool, write, reader
) -> None:
    values = [LARGEST, -(2**63), LARGEST + 1, float("nan"), float("inf")]
    rows = [call(json.dumps({"id": v}) if as_text and v == v else {"id": v}) for v in values]
    write("a.jsonl", "".join(json.dumps(it) + "\n" for it in rows[:2]))
    kept = [it.messages[1]["tool_calls"][0]["function"] for it in reader(path="a.jsonl").rows]
    assert [it["arguments"]["id"] for it in kept] == values[:2]

    write("b.jsonl", "".join(json.dumps(it) + "\n" for it in rows[2:]))
    with pytest.raises(DataError) as caught:
        reader(path="b.jsonl")
    assert (
        f"b.jsonl:1: messages[1] has tool_calls[0].arguments holds the whole number {LARGEST + 1}"
        in str(caught.value)
    )
    assert "b.jsonl:2: " in str(caught.value)
    assert "b.jsonl:3: " in str(caught.value)


def test_a_number_of_thousands_of_digits_is_a_bad_row_and_no_crash(write, reader) -> None:
    digits = "9" * 5000
    line = f'{{"prompt": "a", "completion": "b", "n": {digits}}}'
    write("a.jsonl", f"{line}\n")
    write("a.json", f"[{line}]\n")

    with pytest.raises(DataError, match=r"a\.jsonl:1: JSON that cannot be read"):
        reader(path="a.jsonl")
    with pytest.raises(DataError, match=r"a\.json:1: broken JSON"):
        reader(path="a.json")


@pytest.mark.parametrize("deep", [210, 300, 900])
def test_a_schema_without_end_is_refused_with_its_line(deep: int, write, reader) -> None:
    parameters: dict[str, Any] = {}
    for _ in range(deep):
        parameters = {"a": parameters}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    fine = {"messages": turns}
    write("a.jsonl", json.dumps(fine) + "\n" + json.dumps({**fine, "tools": tools}) + "\n")

    with pytest.raises(DataError, match=r"a\.jsonl:2: tools\[0\] is nested more than 200 deep"):
        reader(path="a.jsonl")


def test_a_deep_schema_that_is_kept_can_be_written(prepare, words) -> None:
    parameters: dict[str, Any] = {}
    for _ in range(190):
        parameters = {"a": parameters}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    rows = [{"prompt": words(9), "completion": words(9), "tools": [tool]} for _ in range(30)]

    sides = prepare(rows)

    assert sides.rows("test")[0]["tools"] == [tool]
