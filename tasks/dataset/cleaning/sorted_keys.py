"""Sets of 64-bit hashes as sorted arrays: eight bytes each, where Python's sets take sixty."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]
    Places = npt.NDArray[np.int64]

_FILTER_BITS = (16, 24)


class SortedKeys:
    """Finds the members of a set among other numbers; all lookups are of whole arrays."""

    def __init__(self, values: "Hashes") -> None:
        """`values` are sorted, each once; see `distinct`."""
        import numpy as np

        self.values = values
        low, high = _FILTER_BITS
        bits = min(high, max(low, len(values).bit_length() + 3))
        self._shift = np.uint64(64 - bits)
        # Says of most numbers at once that they are not in the set: a search among millions is slow.
        self._table = np.zeros(1 << bits, dtype=np.bool_)
        self._table[values >> self._shift] = True

    def __len__(self) -> int:
        return len(self.values)

    def found(self, asked: "Hashes") -> "tuple[Places, Places]":
        """Which of the numbers asked are in the set, and the place in `values` of each of those."""
        import numpy as np

        which = np.flatnonzero(self._table[asked >> self._shift])
        places = np.searchsorted(self.values, asked[which])
        inside = places < len(self.values)
        which, places = which[inside], places[inside]
        equal = self.values[places] == asked[which]
        return which[equal], places[equal]


def distinct(values: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
    """The numbers sorted, each once; several times as fast as numpy's `unique`, which hashes them."""
    return in_place_distinct(values.copy())


def in_place_distinct(values: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
    """The same, for values that nobody needs in their order any more."""
    values.sort()
    return values[first_of_each(values)]


def first_of_each(ordered: "npt.NDArray[Any]") -> "npt.NDArray[np.bool_]":
    """Marks where a new number begins in a sorted array."""
    import numpy as np

    first = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return first
