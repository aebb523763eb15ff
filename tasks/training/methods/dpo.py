"""Direct Preference Optimization (arXiv:2305.18290): better answers gain on worse ones, measured from the base."""

from typing import Any

import pyarrow as pa
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from tasks.training.methods.preference import Preference, PreferenceTrainer, pairs_of
from tasks.training.methods.ready import ready


class PairTrainer(PreferenceTrainer, DPOTrainer):
    """TRL's DPO on our tokens; its reference is the base, the adapter switched off."""

    def rows_in(self, batch: dict[str, Any]) -> int:
        """Pairs: the batch holds the better answers, and below them the worse ones."""
        return len(batch["input_ids"]) // 2

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset


def rows(table: pa.Table) -> Dataset:
    """`prompt_ids`, `chosen_ids`, `rejected_ids`."""
    return ready(pairs_of(table))


def collator(pad_id: int, multiple: int) -> DataCollatorForPreference:
    """TRL's, which cuts nothing when it is told no length."""
    return DataCollatorForPreference(pad_id, max_length=None, pad_to_multiple_of=multiple)


DPO = Preference(
    DPOConfig,
    PairTrainer,
    rows,
    collator,
    {"max_length": None, "precompute_ref_log_probs": False},
)
