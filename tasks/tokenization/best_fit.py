"""Best-fit-decreasing bin packing on counts of lengths: all rows of a length are placed at once."""

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Which pack each row goes to; rows of one length are alike."""

    owners: dict[int, list[int]]
    """Length -> the pack of each of its rows."""
    packs: int


def best_fit_decreasing(counts: Mapping[int, int], capacity: int) -> Plan:
    """The longest row first, each into the fullest pack that still has room for it.

    `counts` tells how many rows have a length (1 to `capacity`). A pack that is the best fit for the
    first of several equal rows stays so until it has no room for another: the work grows with the
    distinct lengths and spaces, and not with the rows. Never needs more than four packs above 11/9 of
    the fewest possible (D. S. Johnson, "Near-Optimal Bin Packing Algorithms", 1973).
    """
    shelf = _Shelf(capacity)
    owners = {
        length: shelf.place(length, counts[length]) for length in sorted(counts, reverse=True)
    }
    return Plan(owners, shelf.packs)


class _Shelf:
    """Packs that are being filled, by the room that is left in them."""

    def __init__(self, capacity: int) -> None:
        self.packs = 0
        self._capacity = capacity
        self._spaces: list[int] = []
        """The spaces that some pack has left, ascending; packs without space are forgotten."""
        self._with_space: dict[int, list[int]] = {}

    def place(self, length: int, count: int) -> list[int]:
        """The packs of `count` rows of one length; no length may be larger than the one before."""
        owners: list[int] = []
        while len(owners) < count:
            at = bisect_left(self._spaces, length)
            if at == len(self._spaces):
                fresh = -(-(count - len(owners)) // (self._capacity // length))
                self._put(list(range(self.packs, self.packs + fresh)), self._capacity)
                self.packs += fresh
                at = len(self._spaces) - 1
            space = self._spaces.pop(at)
            self._fill(self._with_space.pop(space), space, length, count - len(owners), owners)
        return owners

    def _fill(
        self, packs: list[int], space: int, length: int, count: int, owners: list[int]
    ) -> None:
        """Fill packs of equal space one after the other, with at most `count` rows."""
        each = space // length
        full = min(len(packs), count // each)
        owners += packs[:full] * each
        self._put(packs[:full], space - each * length)
        left = count - full * each
        if full < len(packs) and left:
            owners += [packs[full]] * left
            self._put([packs[full]], space - left * length)
            full += 1
        self._put(packs[full:], space)

    def _put(self, packs: list[int], space: int) -> None:
        if not packs or not space:
            return
        if space in self._with_space:
            self._with_space[space] += packs
        else:
            self._with_space[space] = packs
            insort(self._spaces, space)
