import random

import pytest

from tasks.dataset.cleaning.normalise import EMPTIED, normal, normalised
from tasks.dataset.rows import Row, prompt_group


def row(prompt: str, answer: str = "Yes.", group: str | None = None) -> Row:
    messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Row(messages, group or prompt_group(messages), "rows.jsonl:1")


@pytest.mark.parametrize(
    ("written", "wanted", "kind"),
    [
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour", "line ends"),
        ("nul\x00 and delete\x7f and \x85", "nul and delete and \n", "control characters"),
        ("\x1b[1;31mred\x1b[0m", "red", "terminal colours"),
        ("\ufeffmark, zero\u200bwidth", "mark, zerowidth", "invisible characters"),
        ("a\u202eb", "ab", "invisible characters"),
        ("hidden\U000e0041\U000e0042", "hidden", "invisible characters"),
        ("cafe\u0301", "café", "composed characters"),
        # What stood between a letter and its accent is gone before they are joined.
        ("cafe\u200b\u0301", "café", "composed characters"),
    ],
)
def test_what_looks_the_same_is_written_the_same(written: str, wanted: str, kind: str) -> None:
    result, changes = normalised(row(written))

    assert result is not None
    assert result.messages[0]["content"] == wanted
    assert changes[kind] == 1
    assert normal(wanted) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n\tif x:\n\t    return 'a  b'   \n\n\n    # end\n",
        "x² ﬁne ｗｉｄｅ “quoted” a\u00a0b",
        "👩\u200d👩\u200d👧 and 🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
        "می\u200cخواهم שלום\u200f",
    ],
)
def test_indentation_styles_and_joiners_stay_as_they_are(text: str) -> None:
    given = row(text)

    result, changes = normalised(given)

    assert result is given
    assert not changes


def test_normalising_twice_changes_nothing_more() -> None:
    rng = random.Random(0)
    parts = [
        "a",
        "e",
        "\u0301",
        "\u0323",
        "\r",
        "\n",
        "\x00",
        "\x1b",
        "[0m",
        "\u200b",
        "\u202e",
        "\u1100",
        "\u1161",
    ]
    for _ in range(5000):
        once = normal("".join(rng.choices(parts, k=rng.randint(1, 8))))
        assert normal(once) == once


def test_a_row_counts_once_for_each_kind_of_change() -> None:
    _, changes = normalised(row("a\r\nb\r\nc", "d\r\n\x00e"))

    assert changes == {"line ends": 1, "control characters": 1}


def test_prompts_that_become_equal_get_the_same_group() -> None:
    composed, _ = normalised(row("un cafe\u0301"))
    plain, _ = normalised(row("un café"))
    own_group, _ = normalised(row("un cafe\u0301", group="thread-7"))

    assert composed is not None
    assert plain is not None
    assert own_group is not None
    assert composed.group == plain.group
    assert composed.id == plain.id
    assert own_group.group == "thread-7"


def test_an_answer_of_invisible_characters_leaves_no_row() -> None:
    assert normalised(row("hello", "\u200b\ufeff")) == (None, {EMPTIED: 1})


def test_tool_calls_and_rejected_endings_are_normalised_too() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"text": "a\x00b"}}}
    given = Row(
        (
            {"role": "user", "content": "call f"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ),
        "g",
        "rows.jsonl:1",
        rejected=({"role": "assistant", "content": "no\r\n"},),
    )

    result, _ = normalised(given)

    assert result is not None
    assert result.messages[1]["tool_calls"][0]["function"]["arguments"] == {"text": "ab"}
    assert result.messages[1]["content"] is None
    assert result.rejected[0]["content"] == "no\n"
