"""Rows of different lengths in left-padded batches, longest rows last."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Batch:
    """A rectangle of token ids; every row ends at its right edge."""

    rows: list[int]
    """Which rows these are."""
    input_ids: list[list[int]]
    attention_mask: list[list[int]]
    """0 on padding. Padding is known by its place, never by its id, which may be a stop token."""
    position_ids: list[list[int]]
    """Places counted from each row's own first token."""

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return len(self.input_ids[0])


def batches(rows: Sequence[Sequence[int]], size: int, padding: int) -> Iterator[Batch]:
    """All rows, sorted by length (so that little is padded), `size` at a time."""
    order = sorted(range(len(rows)), key=lambda row: (len(rows[row]), row))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        length = max(len(rows[row]) for row in chosen)
        gaps = [length - len(rows[row]) for row in chosen]
        yield Batch(
            rows=chosen,
            input_ids=[
                [padding] * gap + list(rows[row]) for gap, row in zip(gaps, chosen, strict=True)
            ],
            attention_mask=[[0] * gap + [1] * (length - gap) for gap in gaps],
            position_ids=[[0] * gap + list(range(length - gap)) for gap in gaps],
        )
