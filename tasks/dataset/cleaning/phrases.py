"""Phrases that many texts share: instructions and forms, which say nothing of where a text comes from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.dataset.cleaning.shingles import hashed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PHRASE = (0, 5, 10, 15, 19)
"""Shingles that together cover 24 characters: what many texts share at that length is a form, while
single shingles are common to all texts of a language."""
SHINGLE = (0,)
"""One shingle alone, 5 characters."""
_MAX_KEPT = 1 << 24
_FILTER_BITS = (16, 26)


class Phrases:
    """Counts the phrases of a set of texts, in the set and in other texts, and knows the common ones.

    Of a set of more than 16 million characters every second, fourth, ... phrase is counted, chosen by
    its hash: a form is longer than one phrase.
    """

    def __init__(
        self,
        texts: Sequence[Sequence[str]],
        counted: Sequence[bool],
        common: int,
        length: Sequence[int] = PHRASE,
    ) -> None:
        """`texts` come in parts. Phrases in more than `common` of the `counted` ones are forms."""
        import numpy as np

        self._length = length
        size = sum(len(text) for part in texts for text in part)
        self._sampled = np.uint64((1 << max(0, (size // _MAX_KEPT).bit_length())) - 1)
        own = [np.unique(self._of(part)[0]) for part in texts]
        self._keys = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *own]))
        self._counts = np.zeros(len(self._keys), dtype=np.uint32)
        self._open = np.ones(len(self._keys), dtype=np.bool_)
        self._filter = _Filter(self._keys)
        chosen = iter(counted)
        for part in texts:
            self._count([text for text in part if next(chosen)])
        self._forms = self._counts > common
        self._counts[:] = 0
        self._settle()

    def meet(self, texts: Sequence[str], common: int) -> None:
        """Count phrases in texts that are not of the set; `leave_out_forms` decides by it."""
        self._open = self._counts <= common
        self._count(texts)

    def leave_out_forms(self, common: int) -> None:
        """Phrases in more than `common` of the texts met are forms from now on."""
        self._forms |= self._counts > common
        self._settle()

    def outside(
        self, hashes: "npt.NDArray[np.uint64]", offsets: "npt.NDArray[np.uint64]"
    ) -> "npt.NDArray[np.bool_]":
        """Marks the shingles of texts that lie in no form."""
        import numpy as np

        phrases, starts, _ = self._begun(hashes, offsets)
        held = self._common_filter.may_hold(phrases)
        starts, phrases = starts[held], phrases[held]
        starts = starts[_member(self._common, phrases)[1]]
        # A form takes all shingles with it that it covers.
        covered = np.zeros(len(hashes) + 1, dtype=np.int32)
        np.add.at(covered, starts, 1)
        np.add.at(covered, starts + self._length[-1] + 1, -1)
        return np.asarray(np.cumsum(covered[:-1]) == 0)

    def _settle(self) -> None:
        self._common = self._keys[self._forms]
        self._common_filter = _Filter(self._common)

    def _count(self, texts: Sequence[str]) -> None:
        import numpy as np

        if not texts or not len(self._keys):
            return
        phrases, text_of = self._of(texts)
        held = self._filter.may_hold(phrases)
        phrases, text_of = phrases[held], text_of[held]
        places, found = _member(self._keys, phrases)
        places, text_of = places[found], text_of[found]
        still = self._open[places]
        once = np.unique(text_of[still] * len(self._keys) + places[still])
        np.add.at(self._counts, once % len(self._keys), 1)

    def _of(self, texts: Sequence[str]) -> "tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]":
        """All phrases of the texts, and the number of the text that each belongs to."""
        phrases, _, text_of = self._begun(*hashed(texts))
        return phrases, text_of

    def _begun(
        self, hashes: "npt.NDArray[np.uint64]", offsets: "npt.NDArray[np.uint64]"
    ) -> "tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int64]]":
        """The phrases, the shingles that they begin with, and the numbers of their texts."""
        import numpy as np

        lengths = (offsets[1:] - offsets[:-1]).astype(np.int64)
        text_of = np.repeat(np.arange(len(lengths)), lengths)
        span = self._length[-1]
        count = max(0, len(hashes) - span)
        phrases = np.zeros(count, dtype=np.uint64)
        for i in self._length:
            phrases = (phrases ^ hashes[i : i + count]) * np.uint64(0x9E3779B97F4A7C15)
        inside = text_of[:count] == text_of[span : span + count]
        if self._sampled:
            inside &= (phrases >> np.uint64(20)) & self._sampled == 0
        starts = np.flatnonzero(inside)
        return phrases[starts], starts, text_of[starts]


class _Filter:
    """Says of most numbers at once that they are not in a set: a search among millions is slow."""

    def __init__(self, keys: "npt.NDArray[np.uint64]") -> None:
        import numpy as np

        low, high = _FILTER_BITS
        bits = min(high, max(low, len(keys).bit_length() + 3))
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, dtype=np.bool_)
        self._table[keys >> self._shift] = True

    def may_hold(self, values: "npt.NDArray[np.uint64]") -> "npt.NDArray[np.bool_]":
        """Marks the values that may be in the set."""
        import numpy as np

        return np.asarray(self._table[values >> self._shift])


def _member(
    keys: "npt.NDArray[np.uint64]", values: "npt.NDArray[np.uint64]"
) -> "tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]":
    """Where each value stands among the sorted keys, and whether it does."""
    import numpy as np

    places = np.searchsorted(keys, values)
    found = places < len(keys)
    found[found] = keys[places[found]] == values[found]
    return places, found
