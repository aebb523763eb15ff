"""Texts as sets of 5-character pieces ("shingles"), hashed in bulk: what similarity is measured on.

Characters and not words: languages without spaces, code and typing errors are compared alike.
Letter case and white space do not count, so neither does indentation.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.dataset.rows import Message, Row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LENGTH = 5
MAX_CHARACTERS = 100_000
"""Of a longer text the beginning is compared: two books that are equal so far are copies."""
CHANCE = 1 / 256
"""Share of slots that two unrelated sketches have in common."""

_SEED = 1
_PAD = "\0" * LENGTH


def compared(row: Row) -> tuple[str, str]:
    """Prompt and answer as they are compared: what was said, in one case and without layout. A text is
    an answer to nothing.

    System prompts (`operators`) are left out: the same one stands in thousands of rows that have
    nothing else in common.
    """
    before = " ".join(said(m) for m in row.messages[:-1] if m["role"] != "system")
    return _plain(before), _plain(last_said(row))


def operators(row: Row) -> str:
    """What the system prompts say, as it is compared; empty without one."""
    return _plain(" ".join(said(m) for m in row.messages if m["role"] == "system"))


def last_said(row: Row) -> str:
    """The last answer with its tool calls, or the text of a row that is one."""
    return said(row.messages[-1]) if row.text is None else row.text


def said(message: Message) -> str:
    """A message's text, and what its tool calls ask for."""
    parts = [str(message.get("content") or "")]
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        parts.append(f"{function.get('name', '')} {function.get('arguments', '')}")
    return " ".join(parts)


def hashed(texts: Sequence[str]) -> "tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]":
    """64-bit hashes of all shingles, text after text, and where each text begins (one entry more).

    A text of fewer than 5 characters is one shingle.
    """
    import numpy as np

    padded = [text if len(text) >= LENGTH else (text + _PAD)[:LENGTH] for text in texts]
    lengths = np.fromiter(map(len, padded), dtype=np.int64, count=len(padded))
    ends = np.cumsum(lengths)
    # Half a surrogate pair may stand in a file; it is compared like any other character.
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    windows = len(points) - LENGTH + 1
    hashes = points[:windows].astype(np.uint64)
    for i in range(1, LENGTH):
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += points[i : i + windows]
    # The finalizer of splitmix64: neighbours in text are no neighbours as hashes.
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
    inside = np.ones(windows, dtype=np.bool_)
    # Windows that begin in one text and end in the next.
    inside[(ends[:-1, None] - np.arange(1, LENGTH)).ravel()] = False
    offsets = np.zeros(len(padded) + 1, dtype=np.uint64)
    np.cumsum(lengths - (LENGTH - 1), out=offsets[1:], dtype=np.uint64)
    return hashes[inside], offsets


def sketches(
    hashes: "npt.NDArray[np.uint64]", offsets: "npt.NDArray[np.uint64]", slots: int
) -> "npt.NDArray[np.uint8]":
    """MinHash sketches of shape (texts, slots): the share of equal slots estimates the Jaccard
    similarity of the shingles.

    One byte a slot (b-bit minwise hashing, Li and Koenig 2010): unrelated slots are equal by chance
    once in 256, which `slots_needed` makes up for.
    """
    import numpy as np
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, slots, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).astype(np.uint8)


def slots_needed(similarity: float, slots: int) -> int:
    """How many equal slots stand for a similarity of at least so much."""
    return round(slots * (CHANCE + similarity * (1 - CHANCE)) + 0.4999)


def _plain(text: str) -> str:
    # Cut first: what lies behind is not worth its time.
    return " ".join(text[: 2 * MAX_CHARACTERS].split()).casefold()[:MAX_CHARACTERS]
