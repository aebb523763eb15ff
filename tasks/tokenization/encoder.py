"""Turn rendered texts into token ids: by `fastokens` where it agrees with `tokenizers`, else by `tokenizers`.

fastokens (Crusoe's Rust encoder) is several times faster, but the model was trained with what
`tokenizers` gives and is served by it. It is used only after both gave equal ids on texts of this
dataset, and goes on being compared on a row of every hundred while it works.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.tokenization.chat import Chat

Ids = NDArray[np.int32]
EncoderName = Literal["fastokens", "tokenizers"]

COMPARED_EVERY = 100
PROBES = (
    "",
    " ",
    "\n\n\n  \t\tx = 1\r\n\r\n    return  x ",
    "Żółć, naïve, ﬁ, Ⅷ, 漢字かな, العربية, हिन्दी, 🙂‍↔️ 👩‍👩‍👧, e\u0301, \u200b\u00a0\ufeff",
    "I'll we'VE 12345678901 3.14e-10 $x_{ij}$ <|notatoken|> </s > ▁ Ġ \x00\x7f",
    "word" * 300,
)
"""What real rows rarely hold and tokenizers most often disagree on."""

_log = logging.getLogger(__name__)


class EncodersDisagree(Exception):
    """fastokens gave other ids than tokenizers for a row; what it encoded so far is not to be trusted."""


@dataclass(frozen=True)
class Batch:
    """Token ids of several texts; iterating gives those of each text, shape (tokens,)."""

    flat: Ids
    """One text's behind the other's."""
    bounds: list[int]
    """Text `k` has `flat[bounds[k]:bounds[k + 1]]`."""

    def __iter__(self) -> Iterator[Ids]:
        return (self.flat[start:stop] for start, stop in pairwise(self.bounds))


class Encoder:
    """Token ids of many texts at once."""

    def __init__(self, chat: Chat, name: EncoderName) -> None:
        """Raises: ImportError, or what fastokens raises for a tokenizer that it cannot read."""
        self.name = name
        self._chat = chat
        self._fast: Any = _fastokens(chat) if name == "fastokens" else None
        self._encoded = 0

    def encode(self, texts: Sequence[str]) -> Batch:
        """Ids of each text, int32; special tokens are those that the texts hold.

        Raises: EncodersDisagree when a compared text has other ids with tokenizers.
        """
        if self._fast is None:
            rows = self._chat.encode(list(texts))
            bounds = list(accumulate(map(len, rows), initial=0))
            return Batch(np.fromiter(chain.from_iterable(rows), np.int32, bounds[-1]), bounds)
        batch = _encode_fast(self._fast, list(texts))
        first = -self._encoded % COMPARED_EVERY
        self._encoded += len(texts)
        compared = range(first, len(texts), COMPARED_EVERY)
        for k, ids in zip(compared, self._chat.encode([texts[k] for k in compared]), strict=True):
            theirs = batch.flat[batch.bounds[k] : batch.bounds[k + 1]].tolist()
            if ids != theirs:
                raise EncodersDisagree(_difference(texts[k], ids, theirs))
        return batch


def choose(chat: Chat, sample: Sequence[str]) -> Encoder:
    """fastokens when it gives the ids of tokenizers for `sample` and some hard texts, else tokenizers.

    Says which in the log, with the reason when it is tokenizers.
    """
    try:
        encoder = Encoder(chat, "fastokens")
        texts = [*PROBES, *_with_special_tokens(chat), *sample]
        for text, ids, theirs in zip(
            texts, chat.encode(texts), _encode_fast(encoder._fast, texts), strict=True
        ):
            if ids != theirs.tolist():
                raise EncodersDisagree(_difference(text, ids, theirs.tolist()))
    except ImportError:
        _log.info("Encoding with tokenizers: the package fastokens is not installed")
    except EncodersDisagree as problem:
        _log.warning("Encoding with tokenizers: %s", problem)
    except Exception as error:  # fastokens raises ValueError, and panics arrive as BaseException
        _log.info("Encoding with tokenizers: fastokens cannot read this tokenizer (%s)", error)
    else:
        _log.info("Encoding with fastokens: equal to tokenizers on %d texts", len(texts))
        return encoder
    return Encoder(chat, "tokenizers")


def _fastokens(chat: Chat) -> Any:
    from fastokens import Tokenizer

    fast = Tokenizer.from_file(str(chat.folder / "tokenizer.json"))
    fast.no_truncation()
    fast.no_padding()
    return fast


def _encode_fast(fast: Any, texts: list[str]) -> Batch:
    ids, offsets = fast.encode_batch_flat(texts)
    flat = np.frombuffer(ids, np.uint32).astype(np.int32)
    return Batch(flat, np.frombuffer(offsets, np.uint64).tolist())


def _with_special_tokens(chat: Chat) -> list[str]:
    """Each special token between words, before white space, and twice in a row."""
    some = list(chat.special_tokens)[:64]
    return [f"a {token} b{token}\n\n  c{token}{token} " for token in some]


def _difference(text: str, ids: list[int], theirs: list[int]) -> str:
    pairs = zip(ids, theirs, strict=False)
    place = next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(theirs)))
    return (
        f"fastokens gives other ids from token {place} of a text of {len(text):,} characters: "
        f"{theirs[place : place + 5]} instead of {ids[place : place + 5]}"
    )
