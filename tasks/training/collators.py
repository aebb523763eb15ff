"""Rows of token ids to a batch: each row alone, or several one behind the other."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tasks.training.kernels.attention import LENGTHS
from tasks.training.packs import EXAMPLE_LENGTHS

NO_LOSS = -100
"""Label of a token that carries no loss, torch's convention."""
NUM_TOKENS = "num_tokens"
"""Key of a packed batch's token count, padding left out; no input of the model."""
Batch = dict[str, Any]


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
        """`input_ids`, `labels`, `position_ids`, each int64 of shape (1, tokens); `example_lengths`
        (a tuple) and `num_tokens`.

        Examples come sorted by length: neighbours of one length are multiplied together. Inside a
        batch their order is of no consequence.
        """
        examples = sorted((e for row in rows for e in _examples(row)), key=lambda e: len(e[0]))
        lengths = tuple(len(ids) for ids, _ in examples)
        labels = torch.tensor([label for _, own in examples for label in own])
        positions = torch.cat([torch.arange(length) for length in lengths])
        # It would be predicted from the last token of the example before.
        labels[positions == 0] = NO_LOSS
        return {
            "input_ids": torch.tensor([[token for ids, _ in examples for token in ids]]),
            "labels": labels[None],
            "position_ids": positions[None],
            LENGTHS: lengths,
            NUM_TOKENS: torch.tensor(len(positions)),
        }


def line_parts(line: Batch, tokens: int) -> Iterator[Batch]:
    """A `LineCollator`'s line cut between examples into parts of about `tokens`, as even as they come."""
    lengths: tuple[int, ...] = line[LENGTHS]
    ends = list(accumulate(lengths, initial=0))
    count = max(1, round(ends[-1] / tokens))
    even = [ends[-1] * part / count for part in range(count + 1)]
    # The example's end that is nearest to each; a long example may be nearest to several.
    cuts = sorted({min(range(len(ends)), key=lambda at: abs(ends[at] - place)) for place in even})
    for first, last in pairwise(cuts):
        begin, end = ends[first], ends[last]
        yield {
            **{name: line[name][:, begin:end] for name in ("input_ids", "labels", "position_ids")},
            LENGTHS: lengths[first:last],
            NUM_TOKENS: torch.tensor(end - begin),
        }


def _examples(row: dict[str, Any]) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids and labels of each example of a row."""
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
