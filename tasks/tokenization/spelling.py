"""Compare token ids with the text they stand for, many answers at once: ten times faster than decoding them."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

from tasks.tokenization.chat import Chat
from tasks.tokenization.encoder import Ids

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_AT_ONCE = 64
"""Rows whose tokens are compared together: what is made of them stays in the processor's cache."""
_WORD = 8
"""Bytes that are compared at once."""
_FIRST_BYTES: NDArray[np.uint64] = np.array([(1 << 8 * n) - 1 for n in range(_WORD + 1)], np.uint64)
"""Selects the first n bytes of a word."""


class Spelling:
    """Knows the bytes that each token of a tokenizer stands for.

    Of the two common kinds: byte-level, and sentencepiece's with byte fallback.
    """

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._added = chat.tokenizer.get_added_tokens_decoder()
        decoder = chat.tokenizer.decoder
        state = json.loads(decoder.__getstate__()) if decoder is not None else {}
        steps = state.get("decoders", [state])
        kinds = {step.get("type") for step in steps}
        self._byte_level = kinds == {"ByteLevel"}
        self._pieces = kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} and all(
            step.get("pattern") == {"String": "▁"} and step.get("content") == " "
            for step in steps
            if step.get("type") == "Replace"
        )
        self._alphabet = _byte_alphabet() if self._byte_level else {}
        # By token: how many bytes it has (-1: not met yet), and its first word among the words.
        self._sizes = np.empty(0, np.int64)
        self._places = np.empty(0, np.int64)
        self._words = np.empty(0, np.uint64)

    def same(self, rows: Sequence[Ids], texts: Sequence[str]) -> list[bool]:
        """Whether the bytes of each row's tokens are those of its text in UTF-8.

        A space before them is let pass: some tokenizers put one before each piece of text, and take
        it off when decoding. False says that they are others, or that the decoder is of another
        kind: then it has to be asked itself.
        """
        if not (self._byte_level or self._pieces):
            return [False] * len(rows)
        return [
            equal
            for first in range(0, len(rows), _AT_ONCE)
            for equal in self._some(rows[first : first + _AT_ONCE], texts[first : first + _AT_ONCE])
        ]

    def _some(self, rows: Sequence[Ids], texts: Sequence[str]) -> list[bool]:
        tokens = np.concatenate(rows).astype(np.intp)
        self._learn(tokens)
        sizes = self._sizes.take(tokens)
        ends = np.concatenate([[0], np.cumsum(sizes)])
        bounds = np.concatenate([[0], np.cumsum([len(ids) for ids in rows])])
        totals = np.diff(ends[bounds]).tolist()
        results: list[bool] = []
        wanted: list[bytes] = []
        for total, text in zip(totals, texts, strict=True):
            data = text.encode()
            if total == len(data) + 1:
                data = b" " + data
            results.append(total == len(data))
            # Keeps the places of the rows behind a row that is different anyway.
            wanted.append(data if total == len(data) else bytes(total))
        different = self._different(tokens, sizes, ends[:-1], b"".join(wanted))
        for row in np.searchsorted(bounds, different, side="right").tolist():
            results[row - 1] = False
        return results

    def _different(
        self, tokens: NDArray[Any], sizes: NDArray[Any], starts: NDArray[Any], data: bytes
    ) -> NDArray[Any]:
        """Which tokens' bytes are not those of `data` from their starts on."""
        padded = data + bytes(_WORD)
        # The word that begins at each byte.
        words: NDArray[np.uint64] = np.ndarray(len(data) + 1, "<u8", padded, strides=(1,))
        places = self._places.take(tokens)
        which = np.arange(len(tokens))
        found = []
        while len(which):
            # Clipped: more than a word's bytes are the whole word.
            selected = _FIRST_BYTES.take(sizes, mode="clip")
            unequal = (words[starts] ^ self._words.take(places)) & selected
            found.append(which[unequal != 0])
            longer = np.flatnonzero(sizes > _WORD)
            which, sizes = which[longer], sizes[longer] - _WORD
            starts, places = starts[longer] + _WORD, places[longer] + 1
        return np.concatenate([np.empty(0, np.intp), *found])

    def _learn(self, tokens: NDArray[Any]) -> None:
        """Look up the bytes of tokens that are met for the first time."""
        if (missing := int(tokens.max(initial=-1)) + 1 - len(self._sizes)) > 0:
            self._sizes = np.concatenate([self._sizes, np.full(missing, -1)])
            self._places = np.concatenate([self._places, np.zeros(missing, np.int64)])
        met = np.zeros(len(self._sizes), np.bool_)
        met[tokens] = True
        new = np.flatnonzero(met & (self._sizes < 0))
        if not len(new):
            return
        pieces = [self._token(token) for token in new.tolist()]
        # A token without bytes has a word, too: what is looked up must exist.
        counts = [max(1, -(-len(piece) // _WORD)) for piece in pieces]
        words = b"".join(
            piece.ljust(_WORD * count, b"\0") for piece, count in zip(pieces, counts, strict=True)
        )
        self._sizes[new] = [len(piece) for piece in pieces]
        self._places[new] = len(self._words) + np.cumsum([0, *counts[:-1]])
        self._words = np.concatenate([self._words, np.frombuffer(words, "<u8")])

    def _token(self, token: int) -> bytes:
        piece = self._chat.tokenizer.id_to_token(token) or ""
        if token in self._added:
            return piece.encode()
        if self._byte_level:
            return b"".join(self._alphabet.get(sign, sign.encode()) for sign in piece)
        if found := _BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(found[1])
        return piece.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, bytes]:
    """Byte-level tokenizers write each byte as one visible character: the byte's own where it is one,
    else the next free one from U+0100 on.
    """
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    own = {sign: ord(sign) for sign in alphabet if ord(sign) < 256}
    others = sorted(alphabet - own.keys())
    missing = np.setdiff1d(np.arange(256), list(own.values())).tolist()
    own.update(zip(others, missing, strict=True))
    return {sign: bytes([byte]) for sign, byte in own.items()}
