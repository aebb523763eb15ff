"""Odds Ratio Preference Optimization (arXiv:2403.07691): learn the better answers and shun the worse, without a reference."""

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from torch.nn import functional

from tasks.training.collators import NO_LOSS, Collator
from tasks.training.methods.preference import (
    CHOSEN,
    PROMPT,
    REJECTED,
    Preference,
    PreferenceTrainer,
    pairs_of,
)
from tasks.training.methods.ready import ready

with warnings.catch_warnings():
    # That it may move within TRL is what the pinned version is for.
    warnings.simplefilter("ignore")
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer


_BETTER = "chosen_labels"


class OddsTrainer(PreferenceTrainer, ORPOTrainer):
    """TRL's ORPO on our tokens, with a likelihood of the better answers without their prompts."""

    _total_train_tokens = 0
    _of_step: Any = None
    """Pairs of the optimizer step, and tokens of their better answers; None beside training."""

    def rows_in(self, batch: dict[str, Any]) -> int:
        """Pairs."""
        return len(batch[_BETTER])

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> Any:
        tokens = sum(int((batch[_BETTER][:, 1:] != NO_LOSS).sum()) for batch in batch_samples)
        pairs = super()._get_num_items_in_batch(batch_samples, device)
        return torch.stack((pairs, torch.tensor(tokens, device=device)))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss; tokens are counted on the way, which its class does not do."""
        if self.model.training:
            self._total_train_tokens += sum(
                int(inputs[f"{side}_attention_mask"].sum()) for side in ("chosen", "rejected")
            )
        self._of_step = num_items_in_batch
        pairs = None if num_items_in_batch is None else num_items_in_batch[0]
        try:
            return super().compute_loss(model, inputs, return_outputs, pairs)
        finally:
            self._of_step = None

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> tuple[Any, ...]:
        """TRL's, whose likelihood of the better answers is one of their prompts too: here of answers alone.

        It is a mean over answer tokens: the step's, so that micro-batches of few tokens do not count for more.
        """
        found = super().concatenated_forward(model, batch)
        labels = batch[_BETTER][:, 1:]
        wanted = labels != NO_LOSS
        # Padded to the longest answer of either side, and without the last position already.
        answers = found[2][:, : labels.shape[1]][wanted]
        nll = functional.cross_entropy(answers.float(), labels[wanted], reduction="sum")
        if self._of_step is None:
            nll = nll / wanted.sum()
        else:
            pairs, tokens = self._of_step
            # `compute_loss` weighs the whole by this micro-batch's share of the pairs.
            nll = nll / tokens * (pairs / len(labels))
        return (*found[:4], nll, *found[5:])


class OddsCollator:
    """Pairs to the batches that TRL's class reads."""

    def __init__(self, pad_id: int, multiple: int) -> None:
        self._rows = Collator(pad_id, multiple)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`chosen_` and `rejected_` with `input_ids`, `labels` and `attention_mask`, (rows, length)."""
        batch: dict[str, Any] = {}
        for side, column in (("chosen", CHOSEN), ("rejected", REJECTED)):
            made = self._rows(
                [
                    {
                        "input_ids": row[PROMPT] + row[column],
                        "labels": [NO_LOSS] * len(row[PROMPT]) + row[column],
                    }
                    for row in rows
                ]
            )
            batch |= {f"{side}_{name}": value for name, value in made.items()}
        return batch


def rows(table: pa.Table) -> Dataset:
    """`prompt_ids`, `chosen_ids`, `rejected_ids`."""
    return ready(pairs_of(table))


ORPO = Preference(
    ORPOConfig,
    OddsTrainer,
    rows,
    OddsCollator,
    # Only its tokenization would read it, which is not used.
    {"max_length": sys.maxsize, "generate_during_eval": False},
)
