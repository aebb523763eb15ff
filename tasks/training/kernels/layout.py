"""Which examples of a flat line of tokens are multiplied together in attention."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

_SLACK_TOKENS, _SLACK_SHARE = 8, 8
"""Examples share a product while the longest is within 8 tokens, or an eighth, of the shortest."""


# Known by identity: what is computed for a group is kept under it.
@dataclass(frozen=True, eq=False)
class Group:
    """Neighbouring examples of about one length: `count` of them, padded to `length` where they differ."""

    begin: int
    """First token of the group in the line."""
    end: int
    count: int
    length: int
    padded: torch.Tensor | None
    """Token of the line for each of the `count * length` places; None where all are equally long.
    What lies behind an example's end is no matter: being later, no token of it looks there."""
    real: torch.Tensor | None
    """Places that hold a token of the group, in the line's order."""

    def take(self, line: torch.Tensor) -> torch.Tensor:
        """(heads, tokens, width) of the line to (heads, count, length, width) of the group."""
        if self.padded is None:
            part = line[:, self.begin : self.end]
        else:
            part = line.index_select(1, self.padded)
        return part.unflatten(1, (self.count, self.length))

    def put(self, part: torch.Tensor, line: torch.Tensor) -> None:
        """Write (heads, count, length, width) of the group to its place in (heads, tokens, width)."""
        part = part.flatten(1, 2)
        line[:, self.begin : self.end] = (
            part if self.real is None else part.index_select(1, self.real)
        )


@lru_cache(maxsize=256)
def groups_of(lengths: tuple[int, ...]) -> tuple[Group, ...]:
    """Groups of examples that lie one behind the other, `lengths` tokens each."""
    groups, begin = [], 0
    for run in _runs(lengths):
        end = begin + sum(run)
        groups.append(_group(begin, end, run))
        begin = end
    return tuple(groups)


def _runs(lengths: Sequence[int]) -> Iterator[list[int]]:
    run: list[int] = []
    for length in lengths:
        low, high = min([*run, length]), max([*run, length])
        if run and high - low > max(_SLACK_TOKENS, low // _SLACK_SHARE):
            yield run
            run = []
        run.append(length)
    if run:
        yield run


def _group(begin: int, end: int, lengths: list[int]) -> Group:
    longest = max(lengths)
    if min(lengths) == longest:
        return Group(begin, end, len(lengths), longest, None, None)
    places = torch.arange(len(lengths) * longest).view(len(lengths), longest)
    size = torch.tensor(lengths)[:, None]
    inside = torch.arange(longest)[None] < size
    start = torch.tensor([0, *lengths[:-1]]).cumsum(0)[:, None] + begin
    padded = start + torch.arange(longest)[None].minimum(size - 1)
    return Group(begin, end, len(lengths), longest, padded.flatten(), places[inside])
