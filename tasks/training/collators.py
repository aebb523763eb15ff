"""Rows of token ids to a batch: each row alone, or several one behind the other."""

from collections.abc import Sequence
from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

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
