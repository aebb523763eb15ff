"""fastokens is used where it gives the ids of tokenizers, and nowhere else."""

import importlib.util
import json
import logging
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.tokenization import encoder as encoder_module
from tasks.tokenization.chat import Chat
from tasks.tokenization.encoder import COMPARED_EVERY, Encoder, EncodersDisagree, choose
from tasks.tokenization.sample import sample_texts

KINDS = ["phi", "byte", "gemma"]
TEXTS = [
    f"<|user|>\nthe text {k}<|end|>\n<|assistant|>\n  Ω 🙂 {'the ' * k}<|end|>" for k in range(250)
]

needs_fastokens = pytest.mark.skipif(
    importlib.util.find_spec("fastokens") is None, reason="fastokens is not installed"
)


class OtherIds:
    """Stands for a fastokens that gives other ids from its `after`-th text on."""

    def __init__(self, chat: Chat, after: int) -> None:
        self._chat = chat
        self._after = after
        self._texts = count()

    def encode_batch_flat(self, texts: list[str]) -> tuple[bytes, bytes]:
        rows = self._chat.encode(texts)
        for row in rows:
            if next(self._texts) >= self._after and row:
                row[-1] += 1
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.uint64)
        return np.array(list(chain.from_iterable(rows)), np.uint32).tobytes(), offsets.tobytes()


def replace_fastokens(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    def build(chat: Chat) -> OtherIds:
        return OtherIds(chat, after)

    monkeypatch.setattr(encoder_module, "_fastokens", build)


def rows(number: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{k:04}",
            "group": "g",
            "messages": [
                {"role": "user", "content": f"Question {k}?"},
                {"role": "assistant", "content": f"Answer {k}."},
            ],
            "source": f"s:{k}",
            "label": None,
        }
        for k in range(number)
    ]


@needs_fastokens
@pytest.mark.parametrize("kind", KINDS)
def test_fastokens_is_chosen_where_it_agrees(kind: str, make_base: Any) -> None:
    chat = Chat(make_base(kind).path)

    chosen = choose(chat, TEXTS)

    assert chosen.name == "fastokens"
    assert [ids.tolist() for ids in chosen.encode(TEXTS)] == chat.encode(TEXTS)


@needs_fastokens
def test_tokenizers_is_chosen_for_a_tokenizer_that_fastokens_does_not_know(
    make_base: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Version 0.3.5 has no Metaspace pre-tokenizer."""
    with caplog.at_level(logging.INFO):
        chosen = choose(Chat(make_base("mistral").path), TEXTS)

    assert chosen.name == "tokenizers"
    assert "fastokens cannot read this tokenizer" in caplog.text


def test_tokenizers_is_chosen_where_fastokens_differs(
    make_base: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chat = Chat(make_base().path)
    replace_fastokens(monkeypatch, after=40)

    chosen = choose(chat, TEXTS)

    assert chosen.name == "tokenizers"
    assert "fastokens gives other ids from token" in caplog.text
    assert [ids.tolist() for ids in chosen.encode(TEXTS)] == chat.encode(TEXTS)


@pytest.mark.parametrize("error", [ImportError("no fastokens"), ValueError("unknown decoder")])
def test_tokenizers_is_chosen_where_fastokens_is_of_no_use(
    make_base: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def build(_: Chat) -> Any:
        raise error

    monkeypatch.setattr(encoder_module, "_fastokens", build)
    with caplog.at_level(logging.INFO):
        chosen = choose(Chat(make_base().path), TEXTS)

    assert chosen.name == "tokenizers"
    assert "Encoding with tokenizers: " in caplog.text


def test_a_row_of_every_hundred_goes_on_being_compared(
    make_base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Chat(make_base().path)
    replace_fastokens(monkeypatch, after=COMPARED_EVERY + 1)
    encoder = Encoder(chat, "fastokens")

    for text in TEXTS[: 2 * COMPARED_EVERY]:
        encoder.encode([text])
    with pytest.raises(EncodersDisagree, match="other ids from token"):
        encoder.encode([TEXTS[0]])


def test_encoders_that_disagree_on_the_way_start_again_with_tokenizers(
    make_base: Any,
    tokenize: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = make_base()
    right = tokenize(base, rows(500))
    replace_fastokens(monkeypatch, after=300)

    tokens = tokenize(base, rows(500))

    assert "Starting again with tokenizers" in caplog.text
    assert json.loads((tokens.path / "card.json").read_text())["encoder"] == "tokenizers"
    assert pq.read_table(tokens.path / "train.parquet").equals(
        pq.read_table(right.path / "train.parquet")
    )


def test_the_card_and_the_summary_say_which_was_used(make_base: Any, tokenize: Any) -> None:
    tokens = tokenize(make_base(), rows(3))

    name = json.loads((tokens.path / "card.json").read_text())["encoder"]
    assert name in ("fastokens", "tokenizers")
    assert f"Encoded by {name}." in (tokens.path / "summary.md").read_text()


def test_the_sample_is_taken_from_everywhere_in_the_file(make_base: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(3000)))

    texts = sample_texts(Chat(make_base().path), file)

    numbers = [int(text.partition("Question ")[2].partition("?")[0]) for text in texts]
    assert 100 <= len(texts) <= 128
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 0
    assert numbers[-1] > 2900
