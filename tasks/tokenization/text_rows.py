"""Texts as token rows for continued pretraining: every token is learned, long texts go on in the next row.

A document is the token for the beginning where the tokenizer writes one, its text, and the end-of-text
token. Pieces of a long document overlap by one token: the last of a piece is the first of the next,
where it is only read, so that every token but the document's first is predicted exactly once.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tasks.errors import BaseModelError
from tasks.tokenization.chat import Chat
from tasks.tokenization.conversation import CONTROL, MARK, Skipped, mark
from tasks.tokenization.drops import Drops
from tasks.tokenization.encoder import Encoder, Ids
from tasks.tokenization.kinds import OTHER_KIND, fits, misfit
from tasks.tokenization.marked import Plain
from tasks.tokenization.reasons import NEUTRALISED, TOO_LONG
from tasks.tokenization.rendering import Unfit
from tasks.tokenization.settings import TokenizationSettings
from tasks.tokenization.spans import Encoded

PIECES = "texts that go on in further rows"
ALTERED = "texts that the tokenizer cannot carry exactly"


class TextRow(NamedTuple):
    """A text, or a piece of one, ready for training and for generation."""

    id: str
    source: str
    encoded: Encoded
    prompt: str
    """The first half of its tokens as text: what evaluation lets the model go on from."""
    reference: str
    """The rest."""
    label: str | None


class TextTokenizer:
    """Makes token rows of a dataset's texts."""

    def __init__(self, chat: Chat, encoder: Encoder, settings: TokenizationSettings) -> None:
        """Raises: BaseModelError for a tokenizer without a token that ends a text."""
        self._chat = chat
        self._encoder = encoder
        self._settings = settings
        self._plain = Plain(chat)
        self._begin, self._end = frame(chat)

    def tokenize(self, rows: list[dict[str, Any]], drops: Drops) -> list[TextRow]:
        """Token rows in the order of `rows`, which are counted in `drops` with what became of them.

        Raises: EncodersDisagree.
        """
        drops.read += len(rows)
        texts: list[tuple[dict[str, Any], str]] = []
        for row in rows:
            if not fits(row, "texts"):
                drops.add(OTHER_KIND, row, misfit(row))
                continue
            try:
                texts.append((row, mark(self._chat, row["text"])))
            except Skipped as skipped:
                drops.add(skipped.reason, row, skipped.what)
        ordinary = iter(self._encoder.encode([text for _, text in texts if MARK not in text]))
        kept: list[TextRow] = []
        for row, text in texts:
            try:
                ids = self._plain.encode(text) if MARK in text else next(ordinary)
            except Unfit as problem:
                drops.add(CONTROL, row, str(problem))
                continue
            if MARK in text:
                drops.count(NEUTRALISED)
            elif self._chat.decode(ids.tolist()).strip() != text.strip():
                drops.count(ALTERED)
            kept += self._pieces(row, ids, drops)
        return kept

    def _pieces(self, row: dict[str, Any], text: Ids, drops: Drops) -> Iterator[TextRow]:
        ids = np.concatenate(
            [np.array(self._begin, np.int32), text, np.array([self._end], np.int32)]
        )
        drops.measured(row, len(ids))
        limit = self._settings.max_length
        if len(ids) > limit:
            if self._settings.long_rows == "drop":
                drops.add(TOO_LONG, row, f"{len(ids):,} tokens")
                return
            drops.count(PIECES)
        starts = range(0, max(len(ids) - 1, 1), limit - 1)
        for number, start in enumerate(starts, 1):
            name = row["id"] if len(starts) == 1 else f"{row['id']}#{number}"
            yield self._row(row, name, ids[start : start + limit])

    def _row(self, row: dict[str, Any], name: str, ids: Ids) -> TextRow:
        half = max(1, len(ids) // 2)
        encoded = Encoded(ids, ((half, len(ids)),), everything=True)
        ended = len(ids) - int(ids[-1] == self._end)
        return TextRow(
            name,
            row["source"],
            encoded,
            self._chat.decode(ids[:half].tolist()),
            self._chat.decode(ids[half:ended].tolist()),
            row["label"],
        )


def frame(chat: Chat) -> tuple[list[int], int]:
    """What stands before a text, as the tokenizer itself writes it (one token or none), and what ends it.

    Raises: BaseModelError when the tokenizer names no `eos_token`.
    """
    around = chat.tokenizer.encode("", add_special_tokens=True).ids
    written = bool(around) and around[0] == chat.bos_id
    # Where the configuration says it, transformers writes the tokenizer's own rule anew.
    asked = chat.config.get("add_bos_token", written)
    begin = [chat.bos_id] if asked and chat.bos_id is not None else []
    name = chat.named_tokens.get("eos_token")
    end = None if name is None else chat.tokenizer.token_to_id(name)
    if end is None:
        raise BaseModelError(
            f"The tokenizer of {chat.folder} names no eos_token, so a text would have no end. Name one "
            "in the tokenizer_config.json of a local copy of the model."
        )
    return begin, end
