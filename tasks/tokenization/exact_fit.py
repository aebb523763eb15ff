"""Packs without a single free position, for lengths so alike that best fit leaves gaps."""

from bisect import bisect_left
from collections.abc import Mapping

from tasks.tokenization.best_fit import Plan, best_fit_decreasing

_LONGEST_SEARCH = 400
"""Pairs looked at before a pack is given up."""


def exact_fit(counts: Mapping[int, int], capacity: int) -> Plan:
    """Full packs as long as they are found, the longest row first; what is left is packed by best fit.

    The longest row is joined by rows near the average of what it leaves free, and the last two are a
    pair that closes the gap exactly. Long rows are used up from above while the short ones, which fit
    anywhere, remain. A combination is used as often as its lengths last.
    """
    stock = _Stock(counts)
    owners: dict[int, list[int]] = {length: [] for length in counts}
    rest: dict[int, int] = {}
    packs = 0
    while stock.lengths:
        combination = _full_pack(stock, capacity)
        if combination is None:
            longest = stock.lengths[-1]
            rest[longest] = stock.rows_of[longest]
            stock.remove({longest: 1}, rest[longest])
            continue
        times = min(stock.rows_of[length] // needed for length, needed in combination.items())
        for length, needed in combination.items():
            owners[length] += list(range(packs, packs + times)) * needed
        stock.remove(combination, times)
        packs += times
    last = best_fit_decreasing(rest, capacity)
    for length, numbers in last.owners.items():
        owners[length] += [packs + number for number in numbers]
    return Plan(owners, packs + last.packs)


class _Stock:
    """The rows that are not packed yet."""

    def __init__(self, counts: Mapping[int, int]) -> None:
        self.rows_of = dict(counts)
        self.lengths = sorted(self.rows_of)
        self._rows = sum(self.rows_of.values())
        self._tokens = sum(length * rows for length, rows in self.rows_of.items())

    @property
    def mean(self) -> float:
        return self._tokens / self._rows

    def remove(self, combination: Mapping[int, int], times: int) -> None:
        for length, needed in combination.items():
            self._rows -= needed * times
            self._tokens -= length * needed * times
            self.rows_of[length] -= needed * times
            if not self.rows_of[length]:
                del self.rows_of[length]
                del self.lengths[bisect_left(self.lengths, length)]


def _full_pack(stock: _Stock, capacity: int) -> dict[int, int] | None:
    """How many rows of which lengths fill a pack, the longest one among them; None if none is found."""
    used = {stock.lengths[-1]: 1}
    space = capacity - stock.lengths[-1]
    while space:
        wanted = max(1, round(space / stock.mean))
        if wanted <= 2:
            if last := _last_rows(stock, used, space):
                for length in last:
                    used[length] = used.get(length, 0) + 1
                return used
            if wanted == 1 or space <= 2 * stock.lengths[0]:
                return None
            wanted = 3
        near = _near(stock, used, space // wanted)
        if near is None or near > space:
            return None
        used[near] = used.get(near, 0) + 1
        space -= near
    return used


def _last_rows(stock: _Stock, used: dict[int, int], space: int) -> tuple[int, ...] | None:
    """One row, or the two most alike, that fill a space."""
    rows_of, lengths = stock.rows_of, stock.lengths
    if rows_of.get(space, 0) > used.get(space, 0):
        return (space,)
    begin = bisect_left(lengths, (space + 1) // 2)
    for long in lengths[begin : begin + _LONGEST_SEARCH]:
        short = space - long
        if short <= 0:
            return None
        # Where both are one length, two of its rows are needed.
        twice = short == long
        if rows_of[long] > used.get(long, 0) and rows_of.get(short, 0) > used.get(short, 0) + twice:
            return (long, short)
    return None


def _near(stock: _Stock, used: dict[int, int], length: int) -> int | None:
    """A length close to the wanted one of which a row is left."""
    at = min(bisect_left(stock.lengths, length), len(stock.lengths) - 1)
    for candidate in stock.lengths[at : at + 2] + stock.lengths[max(0, at - 1) : at]:
        if stock.rows_of[candidate] > used.get(candidate, 0):
            return candidate
    return None
