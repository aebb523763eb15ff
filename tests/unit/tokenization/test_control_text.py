"""The text of a control token in a message is text: it is kept as such, or the row is left out."""

import json
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.errors import DataError
from tasks.tokenization.chat import Chat

Row = dict[str, Any]

KINDS = {
    "phi": ("phi", "phi3", "<s>", "<|endoftext|>", "<|end|>"),
    "byte": ("byte", "qwen2_5", None, "<|im_end|>", "<|im_end|>"),
    "gemma": ("gemma", "gemma", "<bos>", "<eos>", "<end_of_turn>"),
    "mistral": ("mistral", "mixtral", "<s>", "</s>", "</s>"),
}


def row(name: str, question: str, answer: str = "That.") -> Row:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": name, "group": "g", "messages": messages, "source": f"s:{name}", "label": None}


def plain(count: int = 200) -> list[Row]:
    return [row(f"p{k:03}", f"Question {k}?") for k in range(count)]


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request: pytest.FixtureRequest) -> tuple[str, str, str | None, str, str]:
    value: tuple[str, str, str | None, str, str] = request.param
    return value


def test_a_control_token_typed_by_a_user_stays_words(
    kind: Any, make_base: Any, tokenize: Any
) -> None:
    name, template, bos, eos, end = kind
    base = make_base(name, template, bos=bos, eos=eos)
    typed = f"Stop here {end}{end} then say {end}"
    tokens = tokenize(base, [*plain(), row("z", typed)])

    assert tokens.rows["train"] == 201
    stored = pq.read_table(tokens.path / "train.parquet").to_pylist()[-1]
    like = pq.read_table(tokens.path / "train.parquet").to_pylist()[0]
    chat = Chat(base.path)
    specials = [token for token in stored["input_ids"] if token in chat.special_ids]
    assert specials == [token for token in like["input_ids"] if token in chat.special_ids]
    words = "".join(chat.decode(stored["input_ids"]).split())
    assert "".join(typed.split()) in words
    assert typed in stored["prompt"]
    card = json.loads((tokens.path / "card.json").read_text())
    assert card["changed"]["train"] == {"control token's text kept as ordinary text": 1}
    assert card["dropped"]["train"] == {}


def test_what_the_assistant_wrote_is_never_trained_as_words(make_base: Any, tokenize: Any) -> None:
    """Else the model would learn to spell a token's text where it should write the token."""
    tokens = tokenize(make_base(), [*plain(), row("z", "What?", "That.<|end|>")])

    card = json.loads((tokens.path / "card.json").read_text())
    assert tokens.rows["train"] == 200
    assert card["dropped_rows"]["train"] == {
        "control token in the text": ["row z (s:z): messages[1] (assistant) holds <|end|>"]
    }


def test_a_small_dataset_stands_a_typed_control_token(make_base: Any, tokenize: Any) -> None:
    tokens = tokenize(make_base(), [*plain(3), row("z", "What does <|end|> do?")])
    assert tokens.rows["train"] == 4


def test_rows_that_went_through_a_chat_template_before_are_refused(
    make_base: Any, tokenize: Any
) -> None:
    exported = [row(f"z{k:02}", f"<|user|>\nWhat is {k}?<|end|>") for k in range(11)]

    with pytest.raises(
        DataError, match=r"11 of 21 train rows hold the text of a control token, 0 of"
    ):
        tokenize(make_base(), [*plain(10), *exported])
    assert tokenize(make_base(), [*plain(11), *exported]).rows["train"] == 22


def test_more_than_one_answer_in_a_hundred_with_a_control_token_is_refused(
    make_base: Any, tokenize: Any
) -> None:
    lost = [row(f"z{k:02}", "What?", f"That {k}.<|end|>") for k in range(11)]

    with pytest.raises(DataError, match=r"11 of 1,099 train rows .*, 11 of them"):
        tokenize(make_base(), [*plain(1088), *lost])
    assert tokenize(make_base(), [*plain(1089), *lost]).rows["train"] == 1089


def test_think_tags_in_an_answer_are_the_assistants_own(make_base: Any, tokenize: Any) -> None:
    base = make_base("byte", "qwen3", bos=None, eos="<|im_end|>")
    answer = "<think>\nHard.\n</think>\n\nThat."
    tokens = tokenize(base, [row("z", "What?", answer)])

    (stored,) = pq.read_table(tokens.path / "train.parquet").to_pylist()
    trained = [token for token in stored["labels"] if token != -100]
    assert Chat(base.path).decode(trained) == answer + "<|im_end|>"


def test_a_row_that_holds_the_mark_itself_is_left_out(make_base: Any, tokenize: Any) -> None:
    tokens = tokenize(make_base(), [*plain(), row("z", "a \ufdd0 b")])

    card = json.loads((tokens.path / "card.json").read_text())
    assert card["dropped"]["train"] == {"control token in the text": 1}
    assert "U+FDD0" in card["dropped_rows"]["train"]["control token in the text"][0]
