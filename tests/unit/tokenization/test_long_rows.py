"""Rows longer than `max_length`: what is left of them is verified like any row, and counted."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.base import Base
from tasks.tokenization.chat import Chat
from tasks.tokenization.spans import UNTRAINED

Row = dict[str, Any]
LIMIT = 130


def row(messages: list[Row], name: str = "a", **more: Any) -> Row:
    return {
        "id": name,
        "group": "g",
        "messages": messages,
        "source": f"s:{name}",
        "label": None,
        **more,
    }


def exchanges(count: int, question: str = "Question {}?", answer: str = "Answer {}.") -> list[Row]:
    messages: list[Row] = [{"role": "system", "content": "Be brief."}]
    for k in range(count):
        messages.append({"role": "user", "content": question.format(k)})
        messages.append({"role": "assistant", "content": answer.format(k)})
    return messages


def read(folder: Path, base: Base) -> list[tuple[str, str, str]]:
    """Id, whole text and trained text of each row."""
    chat = Chat(base.path)
    rows = pq.read_table(folder / "train.parquet").to_pylist()
    return [
        (
            r["id"],
            chat.decode(r["input_ids"]),
            # Each answer was tokenized apart, with a space put before it.
            chat.decode([token for token in r["labels"] if token != UNTRAINED]).replace("> ", ">"),
        )
        for r in rows
    ]


def card(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "card.json").read_text()))


@pytest.fixture(params=["phi", "byte"])
def base(request: pytest.FixtureRequest, make_base: Any) -> Base:
    if request.param == "phi":
        made = make_base()
    else:
        made = make_base("byte", "llama3", bos="<|begin_of_text|>", eos="<|eot_id|>")
    assert isinstance(made, Base)
    return made


@pytest.fixture
def end(base: Base) -> str:
    return "<|end|>" if "<|end|>" in Chat(base.path).source else "<|eot_id|>"


@pytest.mark.parametrize("policy", ["drop", "truncate_prompt", "split_turns"])
def test_a_row_that_fits_stays_as_it_is(base: Base, tokenize: Any, policy: str) -> None:
    rows = [row(exchanges(2))]
    whole = tokenize(base, rows)
    length = whole.tokens["train"]

    fitting = tokenize(base, rows, max_length=length, long_rows=policy)

    assert read(fitting.path, base) == read(whole.path, base)
    assert card(fitting.path)["changed"]["train"] == {}


def test_the_oldest_exchanges_go_first_and_the_system_prompt_stays(
    base: Base, tokenize: Any, end: str
) -> None:
    tokens = tokenize(base, [row(exchanges(6))], max_length=LIMIT, long_rows="truncate_prompt")

    ((name, text, trained),) = read(tokens.path, base)
    assert name == "a"
    assert "Be brief." in text
    kept = [k for k in range(6) if f"Question {k}?" in text]
    assert kept == list(range(kept[0], 6))
    assert 0 < kept[0] < 6
    assert trained == "".join(f"Answer {k}.{end}" for k in kept)
    assert tokens.tokens["train"] <= LIMIT
    assert card(tokens.path)["changed"]["train"] == {"prompt cut to tokenization.max_length": 1}


def test_as_much_history_stays_as_fits(base: Base, tokenize: Any) -> None:
    """One exchange more would be too long."""
    tokens = tokenize(base, [row(exchanges(6))], max_length=LIMIT, long_rows="truncate_prompt")
    ((_, text, _),) = read(tokens.path, base)
    first = next(k for k in range(6) if f"Question {k}?" in text)

    more = exchanges(6)[:1] + exchanges(6)[1 + 2 * (first - 1) :]

    assert tokenize(base, [row(more)]).tokens["train"] > LIMIT


def test_a_single_message_loses_whole_tokens_from_its_beginning(
    base: Base, tokenize: Any, end: str
) -> None:
    question = "漢字 the 🙂 words " * 20 + "and at last, what?"
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": "This."},
    ]
    tokens = tokenize(base, [row(messages)], max_length=120, long_rows="truncate_prompt")

    ((_, text, trained),) = read(tokens.path, base)
    (stored,) = pq.read_table(tokens.path / "train.parquet").to_pylist()
    assert trained == f"This.{end}"
    assert "Be brief." in text
    assert "�" not in text
    opening = "<|user|>\n" if end == "<|end|>" else "user<|end_header_id|>\n\n"
    kept = stored["prompt"].partition(opening)[2].partition(end)[0]
    assert kept
    assert question.endswith(kept)
    # No shorter than it has to be: a character or two are several tokens at most.
    assert 110 <= len(stored["input_ids"]) <= 120


def test_an_answer_is_never_cut(base: Base, tokenize: Any) -> None:
    rows = [row(exchanges(1)), row(exchanges(1, answer="x" * 300), "b")]

    for policy in ("drop", "truncate_prompt", "split_turns"):
        tokens = tokenize(base, rows, max_length=LIMIT, long_rows=policy)
        assert [name.partition("#")[0] for name, _, _ in read(tokens.path, base)] == ["a"]
        assert card(tokens.path)["dropped"]["train"] == {"longer than tokenization.max_length": 1}


def test_split_turns_trains_each_answer_once(base: Base, tokenize: Any, end: str) -> None:
    tokens = tokenize(base, [row(exchanges(7))], max_length=LIMIT, long_rows="split_turns")

    rows = read(tokens.path, base)
    assert [name for name, _, _ in rows] == [f"a#{n}" for n in range(1, len(rows) + 1)]
    assert "".join(trained for _, _, trained in rows) == "".join(
        f"Answer {k}.{end}" for k in range(7)
    )
    assert all("Be brief." in text for _, text, _ in rows)
    # The first row trains several answers, each later one has the history that fits.
    assert rows[0][2].count("Answer") > 1
    for _, text, trained in rows[1:]:
        assert trained.count("Answer") == 1
        assert text.count("Question") > 1
    lengths = [
        len(r["input_ids"]) for r in pq.read_table(tokens.path / "train.parquet").to_pylist()
    ]
    assert max(lengths) <= LIMIT
    assert card(tokens.path)["changed"]["train"] == {"split into several rows": 1}


def test_split_turns_counts_answers_that_fit_nowhere(base: Base, tokenize: Any) -> None:
    messages = exchanges(5)
    messages[6]["content"] = "y" * 200
    tokens = tokenize(base, [row(messages)], max_length=LIMIT, long_rows="split_turns")

    assert card(tokens.path)["changed"]["train"] == {
        "answers that fit in no row": 1,
        "split into several rows": 1,
    }
    assert "yyy" not in "".join(trained for _, _, trained in read(tokens.path, base))


def test_split_turns_keeps_to_the_answers_that_are_to_be_trained(
    base: Base, tokenize: Any, end: str
) -> None:
    messages = exchanges(7)
    messages[4]["weight"] = 0
    tokens = tokenize(base, [row(messages)], max_length=LIMIT, long_rows="split_turns")

    trained = "".join(text for _, _, text in read(tokens.path, base))
    assert trained == "".join(f"Answer {k}.{end}" for k in range(7) if k != 1)


def test_every_part_begins_with_the_prompt_that_is_sent(base: Base, tokenize: Any) -> None:
    chat = Chat(base.path)
    for policy in ("truncate_prompt", "split_turns"):
        tokens = tokenize(base, [row(exchanges(7))], max_length=LIMIT, long_rows=policy)
        for stored in pq.read_table(tokens.path / "train.parquet").to_pylist():
            (sent,) = chat.encode([stored["prompt"]])
            assert stored["input_ids"][: stored["prompt_length"]] == sent


def test_the_ten_longest_rows_are_listed_before_they_are_shortened(
    base: Base, tokenize: Any
) -> None:
    rows = [row(exchanges(1, answer="z" * k), f"r{k:02}") for k in range(1, 40)]
    tokens = tokenize(base, rows, max_length=60, long_rows="drop")

    longest = card(tokens.path)["longest_rows"]["train"]
    assert [entry["id"] for entry in longest] == [f"r{k}" for k in range(39, 29, -1)]
    assert longest[0]["source"] == "s:r39"
    assert longest[0]["tokens"] > longest[9]["tokens"]
    assert "| r39 |" in (tokens.path / "summary.md").read_text()
