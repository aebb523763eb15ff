"""Texts that resemble one of a given set, by MinHash over what is not common to many texts."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from tasks.dataset.cleaning.frequent import FrequentShingles
from tasks.dataset.cleaning.phrases import Phrases
from tasks.dataset.cleaning.runs import Pairs
from tasks.dataset.cleaning.shingles import CHANCE, hashed, sketches, slots_needed
from tasks.dataset.cleaning.sorted_keys import distinct

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SLOTS = 256
_MIN_SHINGLES = 60
"""Of fewer pieces of text a similarity says nothing: "What is 3 + 1?" resembles "What is 4 + 1?" and does
not repeat it."""
_AT_ONCE = 1024
_COMPARE_AT_ONCE = 8192
_MAX_IN_BUCKET = 16
"""Of the texts that share one band with what is asked, so many are compared. What texts of one small
vocabulary hide from each other in a full bucket, other bands show."""


class Similar:
    """Sketches of a set of texts, ready to be asked. Takes 800 bytes for each of them.

    `meet` as many other texts as there are, then `leave_out_forms`; the first question fixes the
    sketches.
    """

    def __init__(
        self, texts: Sequence[str], prompts: Sequence[int], counted: Sequence[bool], common: int
    ) -> None:
        """Phrases in more than `common` of the `counted` texts do not count. `prompts` says how many
        characters of each text are its prompt.
        """
        self._texts = [texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE)]
        self._prompts = prompts
        self._phrases = Phrases(self._texts, counted, common)
        # Short words around many blanks ("Set the ... to ... at ...") hold no phrase of full length.
        self._frequent = FrequentShingles()

    def meet(self, texts: Sequence[str]) -> None:
        """Look for the set's phrases in other texts."""
        self._phrases.meet(texts)

    def meet_sample(self, texts: Sequence[str]) -> None:
        """Look for shingles in some of the texts met: what most of them hold is no content of a text
        that mostly consists of it.
        """
        self._frequent.meet(texts)

    def leave_out_forms(self, common: int) -> None:
        """Phrases that stand in more than `common` of the texts met do not count from now on."""
        self._phrases.leave_out_forms(common)
        self._frequent.settle()

    @property
    def recognisable(self) -> "npt.NDArray[np.bool_]":
        """Marks the texts that have enough of their own."""
        import numpy as np

        marks = np.zeros(len(self._prompts), dtype=np.bool_)
        marks[self._index.known] = True
        return marks

    @cached_property
    def covered(self) -> "npt.NDArray[np.float64]":
        """What share of each text lies in phrases of many of the texts met: of the whole, or of the
        answer where that is less, so that an instruction alone covers nothing. What the set itself
        has in common is left out of the count.
        """
        import numpy as np

        found = []
        for number, part in enumerate(self._texts):
            hashes, offsets = hashed(part)
            outside = self._phrases.outside(hashes, offsets)
            own = self._phrases.outside(hashes, offsets, own=True)
            begins = offsets[:-1].astype(np.int64)
            prompts = np.asarray(self._prompts[number * _AT_ONCE :][: len(part)], dtype=np.int64)
            lengths = (offsets[1:] - offsets[:-1]).astype(np.int64)
            answers = np.arange(len(hashes)) >= np.repeat(begins + prompts, lengths)
            shares = [
                1
                - np.add.reduceat(outside & counts, begins, dtype=np.int64)
                / np.maximum(1, np.add.reduceat(counts, begins, dtype=np.int64))
                for counts in (own, own & answers)
            ]
            # Without text of its own there is nothing that could be covered.
            empty = np.add.reduceat(own & answers, begins, dtype=np.int64) == 0
            found.append(np.where(empty, 0.0, np.minimum(*shares)))
        return np.concatenate([np.empty(0), *found])

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
        rare = self._frequent.rare(hashes)
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
        self._orders = [
            np.argsort(bands[:, band], kind="stable").astype(np.int32)
            for band in range(bands.shape[1])
        ]
        self._keys = [bands[order, band] for band, order in enumerate(self._orders)]

    def candidates(
        self, asked: "npt.NDArray[np.uint8]", rows: "npt.NDArray[np.int64]"
    ) -> "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]":
        """Pairs (text asked, text of the set), sorted, each once."""
        import numpy as np

        bands = asked[rows].view(np.uint32)
        pairs = [np.empty(0, dtype=np.int64)]
        for band, (keys, order) in enumerate(zip(self._keys, self._orders, strict=True)):
            if not len(keys):
                break
            left = np.searchsorted(keys, bands[:, band], side="left")
            # Most bands are in no text of the set: where the last one ends is asked of few.
            which = np.flatnonzero(keys[np.minimum(left, len(keys) - 1)] == bands[:, band])
            left = left[which]
            right = np.searchsorted(keys, bands[which, band], side="right")
            times = np.minimum(right - left, _MAX_IN_BUCKET)
            inside = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
            found = order[np.repeat(left, times) + inside].astype(np.int64)
            pairs.append(np.repeat(which, times) * len(self.known) + found)
        once = distinct(np.concatenate(pairs))
        count = max(1, len(self.known))
        return rows[once // count], self.known[once % count]
