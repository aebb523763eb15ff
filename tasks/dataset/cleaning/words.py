"""The words of texts as 64-bit hashes, in bulk."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_LETTER, _SIGN = 1, 2
# Scripts that write without spaces: each of their signs is a word.
_SIGNS = ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))
_BASE = 0x9E3779B97F4A7C15
"""Odd, so that its powers have inverses modulo 2^64."""


class Words(NamedTuple):
    """All words, text after text."""

    hashes: "npt.NDArray[np.uint64]"
    offsets: "npt.NDArray[np.int64]"
    """Where each text's words begin; one entry more than texts."""
    places: "npt.NDArray[np.int64]"
    """The character of its text that each word begins with."""

    def text_of(self) -> "npt.NDArray[np.int64]":
        """For each word the number of its text."""
        import numpy as np

        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def hashed_words(texts: Sequence[str]) -> Words:
    """A word is a run of letters, digits and underscores; equal words have equal hashes in any text."""
    import numpy as np

    joined = "\n".join(texts) + "\n"
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    ends = np.cumsum(np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts)))
    begins = np.concatenate([np.zeros(1, dtype=np.int64), ends])
    kinds = _kinds()[points]
    begun = kinds == _SIGN
    letter = kinds == _LETTER
    begun[0] |= letter[0]
    begun[1:] |= letter[1:] & ~letter[:-1]
    starts = np.flatnonzero(begun)
    offsets = np.searchsorted(starts, begins)
    if not len(starts):
        return Words(np.empty(0, dtype=np.uint64), offsets, starts)
    # A polynomial in the base over the word's characters, freed of the place where the word stands.
    powers, inverses = _powers(len(points))
    terms = (points + np.uint32(1)) * powers[: len(points)]
    terms[kinds == 0] = 0
    hashes = np.add.reduceat(terms, starts) * inverses[starts]
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(32)
    places = starts - np.repeat(begins[:-1], np.diff(offsets))
    return Words(hashes, offsets, places)


@cache
def _kinds() -> "npt.NDArray[np.uint8]":
    """For each code point whether it is a letter of a word, a word by itself, or between words."""
    import numpy as np

    letters = (chr(point).isalnum() for point in range(0x110000))
    kinds = np.fromiter(letters, dtype=np.bool_, count=0x110000).astype(np.uint8) * _LETTER
    kinds[ord("_")] = _LETTER
    for first, last in _SIGNS:
        kinds[first : last + 1] = _SIGN
    return kinds


_known_powers: "list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]]" = []


def _powers(count: int) -> "tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]":
    """Powers of the base and of its inverse, at least so many; kept, for batches are of one size."""
    import numpy as np

    if not _known_powers or len(_known_powers[0][0]) < count:
        size = 1 << count.bit_length()
        both = []
        for base in (_BASE, pow(_BASE, -1, 1 << 64)):
            powers = np.full(size, base, dtype=np.uint64)
            powers[0] = 1
            both.append(np.multiply.accumulate(powers))
        _known_powers[:] = [(both[0], both[1])]
    return _known_powers[0]
