"""Odds Ratio Preference Optimization (arXiv:2403.07691): learn the better answers and shun the worse, without a reference."""

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset

from tasks.training.collators import Collator
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


class OddsTrainer(PreferenceTrainer, ORPOTrainer):
    """TRL's ORPO on our tokens."""

    _total_train_tokens = 0

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
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


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
                        "labels": [-100] * len(row[PROMPT]) + row[column],
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
