"""Compare what a row's trained tokens spell with the answer that the data has."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers

from tasks.tokenization.chat import Chat
from tasks.tokenization.encoder import Ids
from tasks.tokenization.rendering import Rendered, Turn
from tasks.tokenization.spans import Encoded

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_INDENTED_LINE = re.compile(r"\n[ \t]")


@dataclass(frozen=True)
class Verdict:
    """How one answer came through the template and the tokenizer. All false: exactly."""

    trimmed: bool = False
    """White space at its beginning or end is lost: the template trims it, or the special token before
    it swallows it, as Phi-3's do."""
    unindented: bool = False
    """That white space was the indentation of the first of several indented lines."""
    prefixed: bool = False
    """The template writes text of its own before it, such as an empty think block."""
    altered: bool = False
    """Its characters do not come back when its tokens are decoded."""


EXACT = Verdict()
ALTERED = Verdict(altered=True)


class Fidelity:
    """Judges the answers of one tokenizer."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._bytes = _Bytes(chat)

    def verdicts(self, rows: Sequence[tuple[Rendered, Encoded]]) -> list[Verdict]:
        """One verdict for each trained answer of the rows, in order."""
        turns = [
            (rendered, turn, encoded.input_ids[start : stop - 1])
            for rendered, encoded in rows
            for turn, (start, stop) in zip(rendered.turns, encoded.spans, strict=True)
        ]
        spelled = self._bytes.join([ids for _, _, ids in turns])
        return [
            self._verdict(rendered, turn, ids, text)
            for (rendered, turn, ids), text in zip(turns, spelled, strict=True)
        ]

    def _verdict(self, rendered: Rendered, turn: Turn, ids: Ids, spelled: bytes | None) -> Verdict:
        answer, written = turn.answer, rendered.written(turn)
        carried = written.lstrip() if self._swallowed(rendered, turn) else written
        altered = not self._spells(ids, spelled, carried)
        if carried == answer:
            return ALTERED if altered else EXACT
        same = carried.strip() == answer.strip()
        return Verdict(
            trimmed=same,
            unindented=same and not carried[:1].isspace() and _indented(answer),
            prefixed=not same and carried.rstrip().endswith(answer.strip()),
            altered=altered,
        )

    def _swallowed(self, rendered: Rendered, turn: Turn) -> bool:
        """Whether the special token before the answer takes the white space at its beginning."""
        if not turn.specials:
            return False
        before = rendered.specials[turn.specials - 1]
        between = rendered.text[before.end() : turn.prompt]
        return before[0] in self._chat.stripping and not between.strip()

    def _spells(self, ids: Ids, spelled: bytes | None, text: str) -> bool:
        if spelled is not None:
            wanted = text.encode()
            # Some tokenizers put a space before each piece of text, and take it off when decoding.
            if spelled == wanted or (spelled[:1] == b" " and spelled[1:] == wanted):
                return True
        return self._chat.decode(ids.tolist()) == text


class _Bytes:
    """The bytes that each token stands for; ten times faster than a decoder, for the common kinds."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._known: list[bytes | None] = []
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

    def join(self, rows: Sequence[Ids]) -> list[bytes | None]:
        """The bytes of each row's tokens together; None where the decoder is of another kind."""
        if not (self._byte_level or self._pieces) or not rows:
            return [None] * len(rows)
        piece: Any = self._known.__getitem__
        try:
            return [b"".join(map(piece, ids.tolist())) for ids in rows]
        except (TypeError, IndexError):
            # A token that is met for the first time.
            self._learn(np.unique(np.concatenate(rows)).tolist())
        return [b"".join(map(piece, ids.tolist())) for ids in rows]

    def _learn(self, tokens: list[int]) -> None:
        self._known += [None] * (tokens[-1] + 1 - len(self._known))
        for token in tokens:
            if self._known[token] is None:
                self._known[token] = self._token(token)

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


def _indented(answer: str) -> bool:
    space = answer[: len(answer) - len(answer.lstrip())]
    return bool(space.rpartition("\n")[2]) and bool(_INDENTED_LINE.search(answer.strip()))
