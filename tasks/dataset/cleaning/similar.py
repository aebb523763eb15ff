"""Texts that resemble one of a given set, by MinHash over what is not common to many texts."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from tasks.dataset.cleaning.phrases import SHINGLE, Phrases
from tasks.dataset.cleaning.runs import Pairs
from tasks.dataset.cleaning.shingles import CHANCE, hashed, sketches, slots_needed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SLOTS = 256
_MIN_SHINGLES = 60
"""Of fewer pieces of text a similarity says nothing: "What is 3 + 1?" resembles "What is 4 + 1?" and does
not repeat it."""
_MIN_SAMPLE = 20
_SAMPLE_ROWS = 4000
_AT_ONCE = 1024
_COMPARE_AT_ONCE = 8192
_MAX_IN_BUCKET = 16
"""Of the texts that share one band with what is asked, so many are compared. What texts of one small
vocabulary hide from each other in a full bucket, other bands show."""


class Similar:
    """Sketches of a set of texts, ready to be asked. Takes a kilobyte for each of them.

    `meet` as many other texts as there are, then `leave_out_forms`; the first question fixes the
    sketches.
    """

    def __init__(self, texts: Sequence[str], counted: Sequence[bool], common: int) -> None:
        """Phrases in more than `common` of the `counted` texts do not count."""
        self._texts = [texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE)]
        self._phrases = Phrases(self._texts, counted, common)
        # Short words around many blanks ("Set the ... to ... at ...") hold no phrase of full length.
        self._shingles = Phrases(self._texts, [False] * len(texts), 0, SHINGLE)
        self._sample = 0

    def meet(self, texts: Sequence[str], common: int) -> None:
        """Look for the set's phrases in other texts: in more than `common` of them, they are forms."""
        self._phrases.meet(texts, common)

    def meet_sample(self, texts: Sequence[str]) -> None:
        """Look for the set's shingles in some of the texts met: what most of them hold is no content
        of a text that mostly consists of it.
        """
        self._sample += len(texts)
        self._shingles.meet(texts, _SAMPLE_ROWS)

    def leave_out_forms(self, common: int) -> None:
        """Phrases that stand in more than `common` of the texts met do not count from now on."""
        self._phrases.leave_out_forms(common)
        if self._sample >= _MIN_SAMPLE:
            self._shingles.leave_out_forms(self._sample // 2)

    @property
    def recognisable(self) -> set[int]:
        """Numbers of the texts that have enough of their own."""
        return set(self._index.known.tolist())

    def found(self, texts: Sequence[str], similarity: float) -> Pairs:
        """Which of the texts have at least this estimated similarity with one of the set."""
        import numpy as np

        index = self._index
        asked, enough = self._sketched(texts)
        rows, known = index.candidates(asked, np.flatnonzero(enough))
        equal = np.zeros(len(rows), dtype=np.int64)
        for start in range(0, len(rows), _COMPARE_AT_ONCE):
            part = slice(start, start + _COMPARE_AT_ONCE)
            same = asked[rows[part]] == index.sketches[known[part]]
            equal[part] = np.count_nonzero(same, axis=1)
        alike = equal >= slots_needed(similarity, _SLOTS)
        shares = (equal[alike] / _SLOTS - CHANCE) / (1 - CHANCE)
        return Pairs(rows[alike], known[alike], shares)

    @cached_property
    def _index(self) -> "_Index":
        import numpy as np

        made = [self._sketched(part) for part in self._texts]
        lines = np.concatenate([np.empty((0, _SLOTS), np.uint8), *(each for each, _ in made)])
        enough = np.concatenate([np.empty(0, np.bool_), *(given for _, given in made)])
        return _Index(lines, np.flatnonzero(enough))

    def _sketched(
        self, texts: Sequence[str]
    ) -> "tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]":
        """Sketches over the shingles that count, and which texts have enough of those."""
        import numpy as np

        hashes, offsets = hashed(texts)
        counts = self._phrases.outside(hashes, offsets)
        begins = offsets[:-1].astype(np.int64)
        lengths = (offsets[1:] - offsets[:-1]).astype(np.int64)
        rare = self._shingles.outside(hashes, offsets)
        mostly_form = np.add.reduceat(rare, begins, dtype=np.int64) < lengths / 2
        counts &= rare | ~np.repeat(mostly_form, lengths)
        before = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
        kept = before[offsets.astype(np.int64)]
        return sketches(hashes[counts], kept, _SLOTS), np.diff(kept) >= _MIN_SHINGLES


class _Index:
    """Brings together texts that share a band of four slots.

    64 bands of four find 98 % of pairs with a similarity of 0.5.
    """

    def __init__(self, sketches: "npt.NDArray[np.uint8]", known: "npt.NDArray[np.int64]") -> None:
        """`known` are the numbers of the texts that may be found."""
        import numpy as np

        self.sketches, self.known = sketches, known
        bands = sketches[known].view(np.uint32)
        self._orders = [np.argsort(bands[:, band], kind="stable") for band in range(bands.shape[1])]
        self._keys = [bands[order, band] for band, order in enumerate(self._orders)]

    def candidates(
        self, asked: "npt.NDArray[np.uint8]", rows: "npt.NDArray[np.int64]"
    ) -> "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]":
        """Pairs (text asked, text of the set), sorted, each once."""
        import numpy as np

        bands = asked[rows].view(np.uint32)
        pairs = [np.empty(0, dtype=np.int64)]
        for band, (keys, order) in enumerate(zip(self._keys, self._orders, strict=True)):
            left = np.searchsorted(keys, bands[:, band], side="left")
            right = np.searchsorted(keys, bands[:, band], side="right")
            times = np.minimum(right - left, _MAX_IN_BUCKET)
            which = np.repeat(np.arange(len(rows)), times)
            inside = np.arange(len(which)) - np.repeat(np.cumsum(times) - times, times)
            pairs.append(which * len(self.known) + order[left[which] + inside])
        once = np.unique(np.concatenate(pairs))
        return rows[once // len(self.known)], self.known[once % len(self.known)]
