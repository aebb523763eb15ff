"""A line of examples, cut between examples into parts that are computed one after the other or side by side."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise, product

import torch

from tasks.training.collators import NUM_TOKENS, Batch
from tasks.training.kernels.attention import LAYOUT
from tasks.training.kernels.layout import Layout

_UNEVEN_TOKENS = 16
"""What two parts of a pair may differ by: each example that changes its part may be alone with its length there."""


def line_parts(line: Batch, tokens: int, *, pairs: bool = False) -> Iterator[Batch]:
    """A `LineCollator`'s line in parts of about `tokens`, as even as its examples come.

    A shared beginning comes with each of them. `pairs`: an even number of parts, where examples allow it and
    such a beginning is short; the first two, the next two and so on have about as many tokens.
    """
    shared, lengths = line[LAYOUT].shared, line[LAYOUT].own
    whole = sum(lengths)
    # Behind a long beginning, parts for the rest alone would be small, and the beginning computed often.
    count = max(1, round(whole / max(tokens - shared, tokens / 2)))
    # Not for the price of a beginning that is long itself.
    if pairs and shared <= whole / 8:
        count += count % 2
    parts = _neighbours(lengths, count)
    if pairs:
        for one, other in zip(parts[::2], parts[1::2], strict=False):
            _even_up(one, other, lengths)
    for part in parts:
        yield _part(line, part)


def _neighbours(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Places of the examples in at most `count` parts: those of about one length stay together."""
    ends = list(accumulate(lengths, initial=0))
    even = [ends[-1] * part / count for part in range(count + 1)]
    # The example's end that is nearest to each; a long example may be nearest to several.
    cuts = sorted({min(range(len(ends)), key=lambda at: abs(ends[at] - place)) for place in even})
    return [list(range(first, last)) for first, last in pairwise(cuts)]


def _even_up(one: list[int], other: list[int], lengths: Sequence[int]) -> None:
    """Exchange examples, or give one away, until the two parts are about as long."""
    while True:
        uneven = sum(lengths[at] for at in one) - sum(lengths[at] for at in other)
        # One example of each length will do; nothing is given for nothing.
        own, others = ({lengths[at]: at for at in part} | {0: None} for part in (one, other))
        given, taken = min(
            product(own, others), key=lambda pair: abs(uneven - 2 * (pair[0] - pair[1]))
        )
        if abs(uneven - 2 * (given - taken)) > abs(uneven) - _UNEVEN_TOKENS:
            return
        for place, source, target in ((own[given], one, other), (others[taken], other, one)):
            if place is not None:
                source.remove(place)
                target.append(place)
        one.sort()
        other.sort()


def _part(line: Batch, places: Sequence[int]) -> Batch:
    """These examples of the line, behind its shared beginning."""
    shared, lengths = line[LAYOUT].shared, line[LAYOUT].own
    ends = list(accumulate(lengths, initial=shared))
    pieces = [slice(0, shared), *(slice(ends[at], ends[at + 1]) for at in places)]
    own = tuple(lengths[at] for at in places)
    return {
        name: torch.cat([line[name][:, piece] for piece in pieces], 1)
        for name in ("input_ids", "labels", "position_ids")
    } | {LAYOUT: Layout(shared, own), NUM_TOKENS: torch.tensor(sum(own) + shared * len(own))}
