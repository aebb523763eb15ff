"""Phrases that many texts share: instructions and forms, which say nothing of where a text comes from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.dataset.cleaning.shingles import hashed
from tasks.dataset.cleaning.sorted_keys import SortedKeys, distinct, in_place_distinct

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]
    Marks = npt.NDArray[np.bool_]

_PHRASE = (0, 5, 10, 15, 19)
"""Shingles that together cover 24 characters: what many texts share at that length is a form, while
single shingles are common to all texts of a language."""
_MAX_KEPT = 1 << 21


class Phrases:
    """Counts the phrases of a set of texts, in the set and in other texts, and knows the common ones.

    Of a set of more than 2 million characters every second, fourth, ... phrase is counted, chosen by
    its hash: a form is longer than one phrase. So memory is bounded: 40 MB, and as much while they
    are gathered.
    """

    def __init__(
        self, texts: Sequence[Sequence[str]], counted: Sequence[bool], common: int
    ) -> None:
        """`texts` come in parts. Phrases in more than `common` of the `counted` ones are forms."""
        import numpy as np

        size = sum(len(text) for part in texts for text in part)
        self._sampled = np.uint64((1 << max(0, (size // _MAX_KEPT).bit_length())) - 1)
        own = np.concatenate(
            [np.empty(0, dtype=np.uint64), *(distinct(self._of(part)[0]) for part in texts)]
        )
        self._keys = SortedKeys(in_place_distinct(own))
        del own
        self._counts = np.zeros(len(self._keys), dtype=np.uint16)
        chosen = iter(counted)
        for part in texts:
            self._count([text for text in part if next(chosen)])
        self._forms = self._counts > common
        self._own = self._common = SortedKeys(self._keys.values[self._forms])
        self._counts[:] = 0

    def meet(self, texts: Sequence[str]) -> None:
        """Count phrases in texts that are not of the set; `leave_out_forms` decides by it."""
        self._count(texts)

    def leave_out_forms(self, common: int) -> None:
        """Phrases in more than `common` of the texts met are forms from now on."""
        self._forms |= self._counts > common
        self._common = SortedKeys(self._keys.values[self._forms])

    def outside(self, hashes: "Hashes", offsets: "Hashes", *, own: bool = False) -> "Marks":
        """Marks the shingles of texts that lie in no form, or in no form of the set's `own`."""
        import numpy as np

        forms = self._own if own else self._common
        if not len(forms):
            return np.ones(len(hashes), dtype=np.bool_)
        phrases, starts, _ = self._begun(hashes, offsets)
        return _uncovered(len(hashes), starts[forms.found(phrases)[0]])

    def _count(self, texts: Sequence[str]) -> None:
        import numpy as np

        if not texts or not len(self._keys):
            return
        phrases, text_of = self._of(texts)
        which, places = self._keys.found(phrases)
        once = distinct(text_of[which] * len(self._keys) + places) % len(self._keys)
        # Far above what counts as common, far below where the count would begin anew.
        np.add.at(self._counts, once[self._counts[once] < 1 << 15], 1)

    def _of(self, texts: Sequence[str]) -> "tuple[Hashes, npt.NDArray[np.int64]]":
        """All phrases of the texts, and the number of the text that each belongs to."""
        phrases, _, text_of = self._begun(*hashed(texts))
        return phrases, text_of

    def _begun(
        self, hashes: "Hashes", offsets: "Hashes"
    ) -> "tuple[Hashes, npt.NDArray[np.int64], npt.NDArray[np.int64]]":
        """The phrases, the shingles that they begin with, and the numbers of their texts."""
        import numpy as np

        lengths = (offsets[1:] - offsets[:-1]).astype(np.int64)
        text_of = np.repeat(np.arange(len(lengths)), lengths)
        span = _PHRASE[-1]
        count = max(0, len(hashes) - span)
        phrases = np.zeros(count, dtype=np.uint64)
        for i in _PHRASE:
            phrases ^= hashes[i : i + count]
            phrases *= np.uint64(0x9E3779B97F4A7C15)
        inside = text_of[:count] == text_of[span : span + count]
        if self._sampled:
            inside &= (phrases >> np.uint64(20)) & self._sampled == 0
        starts = np.flatnonzero(inside)
        return phrases[starts], starts, text_of[starts]


def _uncovered(count: int, starts: "npt.NDArray[np.int64]") -> "Marks":
    """Marks the shingles that no form covers; a form takes all with it that it covers."""
    import numpy as np

    covered = np.zeros(count + 1, dtype=np.int32)
    np.add.at(covered, starts, 1)
    np.add.at(covered, starts + _PHRASE[-1] + 1, -1)
    return np.asarray(np.cumsum(covered[:-1]) == 0)
