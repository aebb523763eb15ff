"""Texts without roles go through every step that conversations go through."""

from typing import Any

import orjson
import pytest

from tasks.dataset.cleaning.filters import Languages, LengthFilter
from tasks.dataset.cleaning.normalise import normalised
from tasks.dataset.cleaning_settings import LengthSettings
from tasks.dataset.rows import Row, text_group
from tasks.dataset.spool import as_line, from_line


def text_row(text: str, group: str | None = None) -> Row:
    return Row((), group or text_group(text), "rows.jsonl:1", text=text)


def test_a_text_is_one_line_without_messages_and_comes_back_as_it_was() -> None:
    row = text_row("Once upon a time.")

    line = as_line(row)

    assert orjson.loads(line) == {
        "id": row.id,
        "group": row.group,
        "messages": [],
        "source": "rows.jsonl:1",
        "label": None,
        "text": "Once upon a time.",
    }
    assert from_line(line) == row


def test_the_identity_of_a_conversation_is_that_of_its_messages_alone() -> None:
    """Versions keep these hashes: another spelling of them would make every row a new one."""
    turns = ({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."})

    assert Row(turns, "g", "s").id == Row(turns, "h", "t", label="x", time="2026").id
    assert Row(turns, "g", "s").id == "38b4d8b51a77609d"
    assert len({Row(turns, "g", "s", rejected=r).id for r in ((), turns[1:], turns)}) == 3
    assert len({Row(turns, "g", "s", tools=t).id for t in ((), ({"a": 1},), ({"a": 2},))}) == 3


def test_texts_are_normalised_and_their_group_follows() -> None:
    row, kinds = normalised(text_row("Cafe\u0301\r\nau\u200b lait"))

    assert row is not None
    assert row.text == "Caf\u00e9\nau lait"
    assert row.group == text_group("caf\u00e9 au lait")
    assert len(kinds) == 3
    kept, _ = normalised(text_row("Cafe\u0301", group="doc-1"))
    assert kept is not None
    assert kept.group == "doc-1"
    assert normalised(text_row("\u200b"))[0] is None


def test_length_and_language_filters_look_at_the_text() -> None:
    short = LengthFilter(LengthSettings(min_answer_characters=10))

    assert short.reason(text_row("Too short")) == "answer shorter than 10 characters"
    assert short.reason(text_row("Long enough, this one.")) is None
    german = "Das Haus steht am Ende der Straße und hat einen kleinen Garten mit Apfelbäumen."
    assert Languages().of_row(text_row(german)) == "de"


def test_texts_are_prepared_like_conversations(prepare, words) -> None:
    texts: list[dict[str, Any]] = [{"text": words(60), "page": i} for i in range(120)]
    copies = [texts[0], {"text": texts[1]["text"] + "!"}, {"text": "Ask erika@firma-beispiel.de."}]

    sides = prepare([*texts, *copies], cleaning={"personal_data": {"policy": "redact"}})

    assert sides.dropped["same prompt and answer"] == 1
    assert sides.dropped["near duplicate"] == 1
    assert sum(sides.dataset.rows.values()) == 121
    rows = [*sides.rows("train"), *sides.rows("test")]
    assert "Ask [EMAIL]." in {row["text"] for row in rows}
    assert all(row["messages"] == [] for row in rows)
    assert sides.card["sources"][0]["mapping"] == {"text": "text"}


def test_a_text_that_quotes_a_test_text_is_not_trained(prepare, words) -> None:
    texts = [{"text": words(60)} for _ in range(100)]
    (tested, *_) = prepare(texts).rows("test")

    quoting = [{"text": f"{words(50)} {tested['text']} {words(50)}"} for _ in range(3)]
    sides = prepare([*texts, *quoting])

    assert tested["id"] in sides.ids("test")
    assert not any(tested["text"] in row["text"] for row in sides.rows("train"))
    assert sides.dropped["repeats an evaluation row"] >= 1


@pytest.mark.parametrize("side", ["train", "test"])
def test_the_card_shows_texts(prepare, words, side: str) -> None:
    sides = prepare([{"text": words(30)} for _ in range(60)])

    shown = (sides.dataset.path / "summary.md").read_text(encoding="utf-8")
    assert any(row["text"] in shown for row in sides.rows(side))
