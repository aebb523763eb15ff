"""Runs of words cut out of texts: their hashes, and which part of its text each lies in."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tasks.dataset.cleaning.sorted_keys import first_of_each
from tasks.dataset.cleaning.words import Words, hashed_words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_IN_PROMPT, _IN_ANSWER = 1, 2


class Entries(NamedTuple):
    """Arrays of one length: a run, the text that it is in, and in which of its parts."""

    runs: "npt.NDArray[np.uint64]"
    texts: "npt.NDArray[np.uint32]"
    parts: "npt.NDArray[np.uint8]"


def entries(texts: Sequence[str], prompts: Sequence[int], words: int, first: int) -> Entries:
    """The runs of texts whose numbers begin with `first`, each once in a text.

    `prompts` says how many characters of each text are its prompt.
    """
    import numpy as np

    found = hashed_words(texts)
    runs, starts = runs_of(found, words)
    rows = np.searchsorted(found.offsets, starts, side="right") - 1
    ends = found.places[starts + words - 1]
    borders = np.asarray(prompts, dtype=np.int64)[rows]
    parts = np.where(ends < borders, _IN_PROMPT, 0)
    parts |= np.where(found.places[starts] >= borders, _IN_ANSWER, 0)
    order = np.lexsort((runs, rows))
    runs, rows, parts = runs[order], rows[order], parts[order]
    firsts = np.flatnonzero(first_of_each(runs) | first_of_each(rows))
    together = np.bitwise_or.reduceat(parts, firsts) if len(firsts) else parts
    return Entries(
        runs[firsts], (rows[firsts] + first).astype(np.uint32), together.astype(np.uint8)
    )


def runs_of(found: Words, words: int) -> "tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]":
    """Hashes of all runs of so many words within a text, and the word that each begins with."""
    import numpy as np

    hashes, offsets = found.hashes, found.offsets
    count = max(0, len(hashes) - words + 1)
    runs = np.zeros(count, dtype=np.uint64)
    for i in range(words):
        runs *= np.uint64(0x9E3779B97F4A7C15)
        runs += hashes[i : i + count]
    runs ^= runs >> np.uint64(32)
    inside = np.ones(count, dtype=np.bool_)
    for i in range(1, words):
        # Runs that begin in one text and end in the next.
        across = offsets[1:-1] - i
        inside[across[(across >= 0) & (across < count)]] = False
    starts = np.flatnonzero(inside)
    return runs[starts], starts


def kinds_of(parts: "npt.NDArray[np.uint8]") -> "list[npt.NDArray[np.bool_]]":
    """Marks all runs, those of the prompt, those of the answer, those that reach across."""
    import numpy as np

    prompt, answer = parts & _IN_PROMPT != 0, parts & _IN_ANSWER != 0
    return [np.ones(len(parts), dtype=np.bool_), prompt, answer, parts == 0]
