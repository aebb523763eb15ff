"""From sketches to clusters: band by band for candidates, then cluster by cluster for the decision."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_MAX_HEADS = 16
"""In one bucket of one band, so many different rows are compared with all others. What a bucket of
thousands of rows that merely share a phrase leaves unseen, other bands find."""
_COMPARE_AT_ONCE = 8192


class Clusters:
    """Rows are spoken of by their rank: 0 is the one that is kept before all others."""

    def __init__(
        self,
        sketches: "npt.NDArray[np.uint8]",
        order: "npt.NDArray[np.int32]",
        *,
        band_slots: int,
        bands_end: int,
        needed: "Sequence[tuple[slice, int]]",
    ) -> None:
        """`sketches` has a line for each row; `order` lists rows from the first rank to the last.

        Bands of `band_slots` (4 or 8) are cut from the first `bands_end` slots. Two rows are alike when
        in each part of the sketches (a slice) at least so many slots are equal.
        """
        import numpy as np

        self._sketches = sketches
        self._order = order
        self._bands = sketches[:, :bands_end].view({4: np.uint32, 8: np.uint64}[band_slots])
        self._needed = needed

    def found(self) -> "npt.NDArray[np.int32]":
        """For each row, in the order of `sketches`, the row that stands for it."""
        import numpy as np

        linked = self._linked()
        members = _shared(linked)
        stands_for = np.arange(len(self._order), dtype=np.int32)
        # Within what hangs together somehow: the first row takes all that it is like, then the
        # first of those that are left, until none is.
        for heads, taken in self._rounds(linked[members], members):
            stands_for[self._order[taken]] = self._order[heads]
        return stands_for

    def _linked(self) -> "npt.NDArray[np.int32]":
        """For each rank the smallest rank that it hangs together with, directly or through others."""
        import numpy as np

        parent = np.arange(len(self._order), dtype=np.int32)
        for band in range(self._bands.shape[1]):
            keys = self._bands[:, band][self._order]
            members = _shared(keys)
            keys = keys[members]
            for heads, taken in self._rounds(keys, members, parent=parent, limit=_MAX_HEADS):
                _link(parent, heads, taken)
        return _roots(parent, parent)

    def _rounds(
        self,
        groups: "npt.NDArray[Any]",
        members: "npt.NDArray[np.int32]",
        parent: "npt.NDArray[np.int32] | None" = None,
        limit: int | None = None,
    ) -> "Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]":
        """Compare, in every group at once, the first member with the others and take out those that
        are like it; then the first of the remaining ones, and so on.

        `groups` is sorted and parallel to `members`, whose ranks ascend within a group. Yields pairs
        of arrays: heads, and the members that are like them. With `parent`, members that hang
        together with their head already are taken out without a comparison.
        """
        import numpy as np

        count = 0
        while len(members) and (limit is None or count < limit):
            count += 1
            first = np.ones(len(groups), dtype=np.bool_)
            first[1:] = groups[1:] != groups[:-1]
            heads = members[first][np.cumsum(first, dtype=np.int32) - np.int32(1)]
            left = ~first
            groups, members, heads = groups[left], members[left], heads[left]
            if parent is not None:
                apart = _roots(parent, heads) != _roots(parent, members)
                groups, members, heads = groups[apart], members[apart], heads[apart]
            alike = self._alike(heads, members)
            yield heads[alike], members[alike]
            groups, members = groups[~alike], members[~alike]

    def _alike(
        self, first: "npt.NDArray[np.int32]", second: "npt.NDArray[np.int32]"
    ) -> "npt.NDArray[np.bool_]":
        import numpy as np

        result = np.ones(len(first), dtype=np.bool_)
        for start in range(0, len(first), _COMPARE_AT_ONCE):
            part = slice(start, start + _COMPARE_AT_ONCE)
            equal = (
                self._sketches[self._order[first[part]]]
                == self._sketches[self._order[second[part]]]
            )
            for slots, needed in self._needed:
                result[part] &= np.count_nonzero(equal[:, slots], axis=1) >= needed
        return result


def _shared(keys: "npt.NDArray[Any]") -> "npt.NDArray[np.int32]":
    """Places of the keys that occur more than once: equal ones together, places ascending in them."""
    import numpy as np

    by_key = np.argsort(keys, kind="stable").astype(np.int32)
    ordered = keys[by_key]
    shared = np.zeros(len(keys), dtype=np.bool_)
    shared[1:] = ordered[1:] == ordered[:-1]
    shared[:-1] |= shared[1:]
    return by_key[shared]


def _roots(
    parent: "npt.NDArray[np.int32]", ranks: "npt.NDArray[np.int32]"
) -> "npt.NDArray[np.int32]":
    import numpy as np

    found = parent[ranks]
    while True:
        above = parent[found]
        if np.array_equal(above, found):
            break
        found = above
    parent[ranks] = found
    return found


def _link(
    parent: "npt.NDArray[np.int32]",
    first: "npt.NDArray[np.int32]",
    second: "npt.NDArray[np.int32]",
) -> None:
    """Union of the pairs' sets; each set's root is its smallest rank."""
    import numpy as np

    while len(first):
        first, second = _roots(parent, first), _roots(parent, second)
        apart = first != second
        first, second = first[apart], second[apart]
        np.minimum.at(parent, np.maximum(first, second), np.minimum(first, second))
