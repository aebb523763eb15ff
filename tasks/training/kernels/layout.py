"""What a flat line of tokens consists of, and which of its examples attention multiplies together."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

_SLACK_TOKENS, _SLACK_SHARE = 8, 8
"""Examples share a product while the longest is within 8 tokens, or an eighth, of the shortest."""
_SEEN = 8192
"""Tokens that the examples of a group see, up to which a shared beginning is put before each of them at once."""


@dataclass(frozen=True)
class Layout:
    """Tokens of a line: those with which all of its examples begin stand once, in front."""

    shared: int
    """0 where the examples have no beginning in common."""
    own: tuple[int, ...]
    """Of each example, behind that beginning."""


# Known by identity: what is computed for a group is kept under it.
@dataclass(frozen=True, eq=False)
class Group:
    """Neighbouring examples of about one length: `count` of them, padded to `length` where they differ."""

    before: int
    """Tokens of the shared beginning, which each of them sees before its own."""
    begin: int
    """First token of the group in the line."""
    lengths: tuple[int, ...]
    """Tokens of its examples."""
    padded: torch.Tensor | None
    """Token of the line for each of the `count * length` places; None where all are equally long. Behind
    an example's end its last token is repeated: being later, that is seen by no token of the example, and
    it predicts nothing, so that its gradient is zero."""
    real: torch.Tensor | None
    """Places that hold a token of the group, in the line's order."""

    @property
    def end(self) -> int:
        """The token of the line behind the last one of the group."""
        return self.begin + sum(self.lengths)

    @property
    def count(self) -> int:
        return len(self.lengths)

    @property
    def length(self) -> int:
        return max(self.lengths)

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


@dataclass(frozen=True, eq=False)
class Asked:
    """The tokens of a group whose attention somebody reads: `length` of each of `count` examples.

    An example with fewer of them is filled up with its last token, which has no gradient.
    """

    tokens: torch.Tensor
    """Of the line: (count, length)."""
    within: torch.Tensor
    """The same ones, counted from the first token that their example sees."""
    real: torch.Tensor
    """Places that hold a token that was asked for, in the line's order."""

    @property
    def count(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    def take(self, line: torch.Tensor) -> torch.Tensor:
        """(heads, tokens, width) of the line to (heads, count, length, width) of these."""
        return line.index_select(1, self.tokens.flatten()).unflatten(1, (self.count, self.length))

    def put(self, part: torch.Tensor, line: torch.Tensor) -> None:
        """Write (heads, count, length, width) of these to their places in (heads, tokens, width)."""
        line[:, self.tokens.flatten()[self.real]] = part.flatten(1, 2).index_select(1, self.real)


def asked_of(group: Group, positions: torch.Tensor) -> Group | Asked:
    """What of a group lies at these positions of the line (rising); all of it where that is no less work."""
    inside = positions[(positions >= group.begin) & (positions < group.end)] - group.begin
    sizes = torch.tensor(group.lengths)
    starts = sizes.cumsum(0) - sizes
    example = torch.searchsorted(starts, inside, right=True) - 1
    counts = example.bincount(minlength=group.count)
    most = max(1, int(counts.max()))
    if 2 * most > group.length:
        return group
    place = torch.arange(len(inside)) - (counts.cumsum(0) - counts)[example]
    within = (sizes - 1)[:, None].repeat(1, most)
    within[example, place] = inside - starts[example]
    return Asked(
        tokens=within + starts[:, None] + group.begin,
        within=within + group.before,
        real=example * most + place,
    )


@lru_cache(maxsize=256)
def groups_of(layout: Layout) -> tuple[Group, ...]:
    """Groups of a line's examples in their order; before them the shared beginning, where there is one."""
    groups = [_group(0, 0, (layout.shared,))] if layout.shared else []
    begin = layout.shared
    for run in _runs(layout):
        groups.append(_group(layout.shared, begin, tuple(run)))
        begin = groups[-1].end
    return tuple(groups)


def _runs(layout: Layout) -> Iterator[list[int]]:
    run: list[int] = []
    for length in layout.own:
        low, high = min([*run, length]), max([*run, length])
        seen = layout.shared and (len(run) + 1) * (layout.shared + high)
        if run and (high - low > max(_SLACK_TOKENS, low // _SLACK_SHARE) or seen > _SEEN):
            yield run
            run = []
        run.append(length)
    if run:
        yield run


def _group(before: int, begin: int, lengths: tuple[int, ...]) -> Group:
    longest = max(lengths)
    if min(lengths) == longest:
        return Group(before, begin, lengths, None, None)
    places = torch.arange(len(lengths) * longest).view(len(lengths), longest)
    size = torch.tensor(lengths)[:, None]
    inside = torch.arange(longest)[None] < size
    start = size.cumsum(0) - size + begin
    padded = start + torch.arange(longest)[None].minimum(size - 1)
    return Group(before, begin, lengths, padded.flatten(), places[inside])
