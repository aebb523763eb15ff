"""Rows of token ids to a batch: each row alone, or several one behind the other."""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tasks.training.kernels.attention import LAYOUT
from tasks.training.kernels.layout import Layout
from tasks.training.packs import EXAMPLE_LENGTHS

NO_LOSS = -100
"""Label of a token that carries no loss, torch's convention."""
NUM_TOKENS = "num_tokens"
"""Key of a batch's token count, without padding, with a shared beginning in each row; no input of the model."""
_SHARED = 8
"""A shared beginning is computed once up to a multiple of so many tokens: fewer are not worth their cost in
attention, and what is kept for each length stays little.
"""
Batch = dict[str, Any]
Example = tuple[list[int], list[int]]
"""Token ids and labels."""


class Collator:
    """Rows of token ids to a batch, padded on the right to the longest row."""

    def __init__(self, pad_id: int, multiple: int) -> None:
        self._pad_id = pad_id
        self._multiple = multiple

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """`input_ids`, `labels` and `attention_mask`, each int64 of shape (rows, length)."""
        batch = self.padded(rows)
        # By position and not by token: the padding token may be the end-of-text token.
        batch["attention_mask"] = torch.zeros_like(batch["input_ids"])
        for at, row in enumerate(rows):
            batch["attention_mask"][at, : len(row["input_ids"])] = 1
        return batch

    def padded(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """`input_ids` and `labels` alone."""
        longest = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), -(-longest // self._multiple) * self._multiple)
        batch = {
            "input_ids": torch.full(shape, self._pad_id),
            "labels": torch.full(shape, NO_LOSS),
        }
        for at, row in enumerate(rows):
            length = len(row["input_ids"])
            batch["input_ids"][at, :length] = torch.tensor(row["input_ids"])
            batch["labels"][at, :length] = torch.tensor(row["labels"])
        return batch


class LineCollator:
    """Rows, packed or not, to one line without padding, as the kernels for a CPU read it."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """`input_ids`, `labels`, `position_ids`, each int64 of shape (1, tokens); `line_layout` and
        `num_tokens`.

        Tokens with which all examples begin, as a system prompt, come once, in front: in a causal model
        nothing behind them changes what is computed of them. Examples come sorted by length: neighbours
        of one length are multiplied together. Inside a batch their order is of no consequence.
        """
        examples = _sorted(rows)
        return _line(examples, _shared_tokens(examples))

    def unshared(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """As if they had no beginning in common: what a step on other rows of these lengths takes."""
        return _line(_sorted(rows), 0)


def _sorted(rows: Sequence[dict[str, Any]]) -> list[Example]:
    return sorted((e for row in rows for e in _examples(row)), key=lambda e: len(e[0]))


def _line(examples: Sequence[Example], shared: int) -> Batch:
    labels, tokens = [NO_LOSS] * shared, examples[0][0][:shared]
    positions = list(range(shared))
    for ids, own in examples:
        tokens += ids[shared:]
        # The first one would be predicted from the last token of the example before.
        labels += [NO_LOSS, *own[shared + 1 :]]
        positions += range(shared, len(ids))
    return {
        "input_ids": torch.tensor([tokens]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([positions]),
        LAYOUT: Layout(shared, tuple(len(ids) - shared for ids, _ in examples)),
        NUM_TOKENS: torch.tensor(sum(len(ids) for ids, _ in examples)),
    }


def _shared_tokens(examples: Sequence[Example]) -> int:
    """With how many tokens all examples begin, as far as none of these predicts an answer's first one."""
    if len(examples) == 1:
        return 0
    unlabelled = (sum(1 for _ in takewhile(NO_LOSS.__eq__, own)) for _, own in examples)
    columns = zip(*(ids for ids, _ in examples), strict=False)
    alike = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, columns))
    return max(0, min(alike, min(unlabelled) - 1)) // _SHARED * _SHARED


def _examples(row: dict[str, Any]) -> Iterator[Example]:
    begin = 0
    for length in row.get(EXAMPLE_LENGTHS) or [len(row["input_ids"])]:
        part = slice(begin, begin + length)
        yield row["input_ids"][part], row["labels"][part]
        begin += length


class PackCollator:
    """Packed rows to a batch whose position ids restart at each example; other rows as `Collator` does.

    From position ids that restart, transformers builds a mask that keeps examples apart
    (`masking_utils.find_packed_sequence_indices`), but only where the batch has no attention mask and
    the model is called with `use_cache=False`.
    """

    def __init__(self, pad_id: int, multiple: int, *, flat: bool) -> None:
        """`flat`: all packs in one line, as flash attention needs them to tell examples apart."""
        self._rows = Collator(pad_id, multiple)
        self._flat = DataCollatorForLanguageModeling(pad_id, padding_free=True) if flat else None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """`input_ids`, `labels`, `position_ids`, each int64 of shape (packs, length), and `num_tokens`.

        Flat batches have the shape (1, tokens), and carry the examples' boundaries as well.
        """
        if EXAMPLE_LENGTHS not in rows[0]:
            return self._rows(rows)
        if self._flat is not None:
            batch: Batch = self._flat(list(rows))
        else:
            batch = self._rows.padded(rows)
            # A padding token restarts at 0: an example of its own, which nothing else sees.
            batch["position_ids"] = torch.zeros_like(batch["input_ids"])
            for at, row in enumerate(rows):
                positions = torch.cat([torch.arange(n) for n in row[EXAMPLE_LENGTHS]])
                batch["position_ids"][at, : len(positions)] = positions
            # It would be predicted from the last token of the example before.
            batch["labels"][batch["position_ids"] == 0] = NO_LOSS
        batch[NUM_TOKENS] = torch.tensor(sum(len(row["input_ids"]) for row in rows))
        return batch
