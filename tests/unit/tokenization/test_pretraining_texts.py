"""Texts for continued pretraining: every token learned once, nothing lost, nothing of a chat template."""

from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from tasks.artifacts import Tokens
from tasks.base import Base
from tasks.errors import DataError
from tasks.tokenization.chat import Chat
from tasks.tokenization.text_rows import frame

Bases = Callable[..., Base]
Tokenize = Callable[..., Tokens]


def text(said: str, name: str = "a") -> dict[str, Any]:
    return {
        "id": name,
        "group": name,
        "messages": [],
        "text": said,
        "source": f"t:{name}",
        "label": None,
    }


@pytest.fixture
def base(make_base: Bases) -> Base:
    return make_base("byte", "chatml", eos="<|endoftext|>", bos=None)


def rows_of(tokens: Tokens, side: str = "train") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(tokens.path / f"{side}.parquet").to_pylist()
    return rows


@pytest.mark.parametrize(
    ("kind", "template", "eos"),
    [
        ("phi", "phi3", "<|endoftext|>"),
        ("byte", "chatml", "<|im_end|>"),
        ("mistral", "phi3", "</s>"),
    ],
)
def test_a_document_is_what_its_tokenizer_writes_and_the_token_that_ends_it(
    kind: str, template: str, eos: str, make_base: Bases, tokenize: Tokenize
) -> None:
    base = make_base(kind, template, eos=eos, bos=None if kind == "byte" else "<s>")
    said = "the first line\n  and an indented one, the end"
    tokens = tokenize(base, [text(said)], [text("the test")], kind="texts")
    (row,) = rows_of(tokens)
    theirs = AutoTokenizer.from_pretrained(base.path)
    assert row["input_ids"] == [*theirs(said)["input_ids"], theirs.eos_token_id]
    assert row["labels"] == row["input_ids"]
    assert row["id"] == "a"
    assert tokens.trained_tokens == tokens.tokens


def test_the_configuration_may_ask_for_a_token_at_the_beginning(make_base: Bases) -> None:
    base = make_base("phi", "phi3")
    assert frame(Chat(base.path))[0] == []
    path = base.path / "tokenizer_config.json"
    path.write_text(path.read_text().replace("{", '{"add_bos_token": true, ', 1))
    chat = Chat(base.path)
    assert frame(chat)[0] == [chat.bos_id]


def test_pieces_of_a_long_document_predict_every_token_exactly_once(
    base: Base, tokenize: Tokenize
) -> None:
    said = "".join(chr(97 + at % 26) for at in range(61))
    tokens = tokenize(base, [text(said)], [text("x")], kind="texts", max_length=16)
    rows = rows_of(tokens)
    assert [row["id"] for row in rows] == [f"a#{n}" for n in range(1, len(rows) + 1)]
    assert max(len(row["input_ids"]) for row in rows) == 16
    predicted = [token for row in rows for token in row["labels"][1:]]
    chat = Chat(base.path)
    whole = [*chat.encode([said])[0], frame(chat)[1]]
    assert [rows[0]["input_ids"][0], *predicted] == whole


@pytest.mark.parametrize("length", [14, 15, 16, 29, 30, 31])
def test_no_piece_is_a_single_token(length: int, base: Base, tokenize: Tokenize) -> None:
    tokens = tokenize(base, [text("a" * length)], [text("x")], kind="texts", max_length=16)
    rows = rows_of(tokens)
    assert all(len(row["input_ids"]) >= 2 for row in rows)
    assert sum(len(row["input_ids"]) - 1 for row in rows) == length


def test_long_documents_are_left_out_only_when_the_recipe_says_drop(
    base: Base, tokenize: Tokenize
) -> None:
    both = [text("a" * 100, "long"), text("short", "short")]
    kept = tokenize(base, both, [text("x")], kind="texts", max_length=16)
    assert {row["id"].split("#")[0] for row in rows_of(kept)} == {"long", "short"}
    dropped = tokenize(base, both, [text("x")], kind="texts", max_length=16, long_rows="drop")
    assert {row["id"] for row in rows_of(dropped)} == {"short"}


def test_packing_takes_texts_too(base: Base, tokenize: Tokenize) -> None:
    many = [text("a" * (5 + at), str(at)) for at in range(20)]
    tokens = tokenize(base, many, [text("x")], kind="texts", max_length=64, packing=True)
    packs = pq.read_table(tokens.path / "train_packs.parquet")["rows"].to_pylist()
    assert sorted(row for pack in packs for row in pack) == list(range(20))


def test_the_prompt_is_the_first_half_and_the_reference_the_rest(
    base: Base, tokenize: Tokenize
) -> None:
    tokens = tokenize(base, [text("x")], [text("abcdefghijk")], kind="texts")
    (row,) = rows_of(tokens, "test")
    assert row["prompt_length"] == len(row["input_ids"]) // 2
    assert row["prompt"] + row["reference"] == "abcdefghijk"


def test_a_control_token_typed_in_a_text_stays_text(base: Base, tokenize: Tokenize) -> None:
    said = "how <|im_end|> is written"
    many = [text(f"{at} words", str(at)) for at in range(200)]
    tokens = tokenize(base, [*many, text(said, "odd")], [text("x")], kind="texts")
    row = next(row for row in rows_of(tokens) if row["id"] == "odd")
    chat = Chat(base.path)
    assert chat.special_tokens["<|im_end|>"] not in row["input_ids"]
    assert chat.decode(row["input_ids"][:-1]) == said


def test_texts_in_which_a_template_was_rendered_already_are_refused(
    base: Base, tokenize: Tokenize
) -> None:
    rendered = [
        text(f"<|im_start|>user\n{n}<|im_end|>\n<|im_start|>assistant\n{n}<|im_end|>", str(n))
        for n in range(300)
    ]
    with pytest.raises(DataError, match="after a chat template was applied"):
        tokenize(base, rendered, [text("x")], kind="texts")


def test_conversations_are_refused_for_pretraining_with_their_number_and_the_way_out(
    base: Base, tokenize: Tokenize
) -> None:
    chat = {
        "id": "c",
        "group": "c",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "source": "chats.jsonl:7",
        "label": None,
    }
    with pytest.raises(DataError) as caught:
        tokenize(base, [chat, text("fine")], [text("x")], kind="texts")
    said = str(caught.value)
    assert "1 of 2 train rows are no texts" in said
    assert "chats.jsonl:7" in said
    assert "conversations: sft" in said


def test_texts_are_refused_for_sft_with_their_number_and_the_way_out(
    base: Base, tokenize: Tokenize
) -> None:
    with pytest.raises(DataError) as caught:
        tokenize(base, [text("a"), text("b", "b")])
    said = str(caught.value)
    assert "2 of 2 train rows are no conversations" in said
    assert "texts: pretraining" in said
    assert "columns" in said
