"""White space before an answer that melts with the template's is left out, counted and told."""

import json
import logging
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.base import Base
from tasks.tokenization.chat import Chat

Row = dict[str, Any]
COUNTED = {"white space before the answer left out": 1}


@pytest.fixture
def base(make_base: Any) -> Base:
    """ChatML writes a line break before the answer; with the answer's own it becomes one token."""
    base: Base = make_base("byte", "qwen2_5", bos=None, eos="<|im_end|>")
    return base


def row(name: str, answer: str) -> Row:
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": answer}]
    return {"id": name, "group": name, "messages": messages, "source": f"s:{name}", "label": None}


def trained(base: Base, stored: Row) -> str:
    return Chat(base.path).decode([label for label in stored["labels"] if label != -100])


def test_one_such_answer_is_trained_without_it_and_the_others_stay(
    base: Base, tokenize: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        tokens = tokenize(base, [row("a", "Yes."), row("b", "\n\n  No.\n  Not."), row("c", " the")])

    stored = pq.read_table(tokens.path / "train.parquet").to_pylist()
    card = json.loads((tokens.path / "card.json").read_text())
    assert [trained(base, one) for one in stored] == [
        "Yes.<|im_end|>",
        "No.\n  Not.<|im_end|>",
        " the<|im_end|>",
    ]
    assert [one["reference"] for one in stored] == ["Yes.", "No.\n  Not.", " the"]
    assert card["changed"]["train"] == COUNTED
    assert "1 train rows: white space before the answer left out" in caplog.text


def test_either_answer_of_a_pair_may_begin_with_it(base: Base, tokenize: Any) -> None:
    pair = {**row("a", "Yes."), "rejected": [{"role": "assistant", "content": "\nNo."}]}
    tokens = tokenize(base, [pair], [pair | {"id": "t", "group": "t"}], kind="pairs")

    (stored,) = pq.read_table(tokens.path / "train.parquet").to_pylist()
    assert Chat(base.path).decode(stored["rejected_ids"]) == "No.<|im_end|>"
    assert trained(base, stored) == "Yes.<|im_end|>"
    assert json.loads((tokens.path / "card.json").read_text())["changed"]["train"] == COUNTED
