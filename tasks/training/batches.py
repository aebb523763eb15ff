"""The order in which rows are read: the same for a seed and an epoch, whatever happened before."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MEGABATCH = 50
"""Batches whose rows are sorted together: more waste less padding and mix lengths less."""

LINE_TOKENS = 3072
"""Tokens that a CPU computes at once, about: where it can, in two parts side by side."""


class RowOrder:
    """A sampler that reshuffles every epoch from `(seed, epoch)` alone.

    The libraries' own samplers draw from the global random state, which differs when a training
    resumes in its second epoch: rows would be read twice or never. With `grouped`, rows of similar
    length share a batch, so that little of it is padding.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, *, grouped: bool) -> None:
        """`batch`: rows of a batch as the recipe says, of whatever size those are that are computed."""
        self._lengths = lengths
        self._batch = batch
        self._seed = seed
        self._grouped = grouped
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) that the next iteration reads."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(row_order(self._lengths, self._batch, self._seed, self._epoch, self._grouped))


def row_order(
    lengths: Sequence[int], batch: int, seed: int, epoch: int, grouped: bool
) -> list[int]:
    """A permutation of the rows; consecutive runs of `batch` form a batch.

    Batches come in random order, so that long rows do not gather at a learning rate. In the first
    epoch the batch with the longest row comes first: memory that does not suffice shows at once. The
    ragged batch comes last.
    """
    generator = random.Random(f"{seed}/{epoch}")
    rows = list(range(len(lengths)))
    generator.shuffle(rows)
    if not grouped:
        return rows
    batches: list[list[int]] = []
    for start in range(0, len(rows), batch * MEGABATCH):
        near = sorted(rows[start : start + batch * MEGABATCH], key=lambda r: (-lengths[r], r))
        batches += [near[at : at + batch] for at in range(0, len(near), batch)]
    ragged = [batches.pop()] if len(rows) % batch else []
    generator.shuffle(batches)
    if epoch == 0 and batches:
        widest = max(range(len(batches)), key=lambda b: lengths[batches[b][0]])
        batches.insert(0, batches.pop(widest))
    return [row for group in batches + ragged for row in group]


def keeps_batches(training_config: Mapping[str, Any]) -> bool:
    """Whether micro-batches must be computed as the recipe cuts them.

    `dataloader_drop_last` drops what lies beyond the last whole one, and NEFTune's noise is scaled by the
    length to which the rows of one are padded.
    """
    return bool(
        training_config.get("dataloader_drop_last") or training_config.get("neftune_noise_alpha")
    )


def micro_batches_together(batch: int, accumulation: int, mean_tokens: float) -> int:
    """How many micro-batches of an optimizer step are computed as one, where that needs no padding.

    The largest divisor of `accumulation` that keeps a line at `LINE_TOKENS`: products of few rows leave
    a processor idle, long lines only take memory.
    """
    fitting = max(1, int(LINE_TOKENS / max(1.0, batch * mean_tokens)))
    return max(n for n in range(1, min(fitting, accumulation) + 1) if accumulation % n == 0)


def total_steps(
    rows: int,
    batch: int,
    accumulation: int,
    epochs: float,
    max_steps: int,
    *,
    drop_last: bool = False,
) -> int:
    """Optimizer steps of a training on one device, as transformers' Trainer counts them.

    `drop_last`: an epoch ends with its last whole batch.
    """
    if max_steps > 0:
        return max_steps
    micro = rows // batch if drop_last else -(-rows // batch)
    per_epoch = max(1, -(-micro // accumulation))
    return -int(-(epochs * per_epoch) // 1)
