"""Shingles that most texts hold, by a sample of them: what a form consists of between its blanks."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from tasks.dataset.cleaning.shingles import hashed
from tasks.dataset.cleaning.sorted_keys import SortedKeys, distinct, first_of_each

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_MIN_SAMPLE = 20
_CHARACTERS = 2000
"""Of each text so many are looked at: a form begins there, and memory stays below 40 MB."""


class FrequentShingles:
    """`meet` a sample of texts, then ask which shingles are in most of them."""

    def __init__(self) -> None:
        import numpy as np

        self._met: list[npt.NDArray[np.uint64]] = []
        self._texts = 0
        self._frequent = SortedKeys(np.empty(0, dtype=np.uint64))

    def meet(self, texts: Sequence[str]) -> None:
        """Take note of the shingles of some texts."""
        import numpy as np

        if not texts:
            return
        hashes, offsets = hashed([text[:_CHARACTERS] for text in texts])
        bounds = offsets.astype(np.int64)
        self._met += [distinct(hashes[start:stop]) for start, stop in pairwise(bounds)]
        self._texts += len(texts)

    def settle(self) -> None:
        """All texts have been met; of few of them, nothing can be said."""
        import numpy as np

        met, self._met = self._met, []
        if self._texts < _MIN_SAMPLE:
            return
        hashes = np.sort(np.concatenate(met))
        begins = np.flatnonzero(first_of_each(hashes))
        counts = np.diff(np.append(begins, len(hashes)))
        self._frequent = SortedKeys(hashes[begins[counts > self._texts // 2]])

    def rare(self, hashes: "npt.NDArray[np.uint64]") -> "npt.NDArray[np.bool_]":
        """Marks the shingles that most texts do not hold."""
        import numpy as np

        marks = np.ones(len(hashes), dtype=np.bool_)
        marks[self._frequent.found(hashes)[0]] = False
        return marks
