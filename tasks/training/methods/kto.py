"""Kahneman-Tversky Optimization (arXiv:2402.01306): each answer is good or bad by itself, without its rival."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from tasks.training.methods.preference import (
    CHOSEN,
    DESIRABLE,
    PROMPT,
    REJECTED,
    Preference,
    PreferenceTrainer,
    pairs_of,
)
from tasks.training.methods.ready import ready

ANSWER, GOOD, STRANGER = "completion_ids", "label", "KL_completion_ids"


class JudgedTrainer(PreferenceTrainer, KTOTrainer):
    """TRL's KTO on our tokens; its reference is the base, the adapter switched off."""

    def rows_in(self, batch: dict[str, Any]) -> int:
        """Judged answers."""
        return len(batch[GOOD])

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset


class JudgedCollator:
    """TRL's batches, with the answers of each batch dealt to each other's prompts.

    Those foreign answers estimate how far the model has moved from the base. TRL deals them once in the
    order of the file and must then read it in that order; here they are dealt when a batch is made, so
    that rows can be shuffled in every epoch.
    """

    def __init__(self, pad_id: int, multiple: int) -> None:
        self._batches = DataCollatorForUnpairedPreference(
            pad_id, max_length=None, pad_to_multiple_of=multiple
        )

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `attention_mask`, `completion_mask`, the same with `KL_` before, and `label`."""
        answers = [row[ANSWER] for row in rows]
        strangers = answers[-1:] + answers[:-1]
        dealt = [row | {STRANGER: other} for row, other in zip(rows, strangers, strict=True)]
        batch: dict[str, Any] = self._batches(dealt)
        return batch


def rows(table: pa.Table) -> Dataset:
    """`prompt_ids`, `completion_ids`, `label`: a row of each judged answer, and two of each pair, the
    better answer first.
    """
    given = pairs_of(table)
    judged = DESIRABLE in table.column_names
    verdicts = table[DESIRABLE].to_pylist() if judged else [None] * table.num_rows
    columns: dict[str, list[Any]] = {PROMPT: [], ANSWER: [], GOOD: []}
    for prompt, answer, rejected, desirable in zip(
        *(given[n] for n in (PROMPT, CHOSEN, REJECTED)), verdicts, strict=True
    ):
        answers = (
            [(answer, True), (rejected, False)] if desirable is None else [(answer, desirable)]
        )
        for ids, good in answers:
            columns[PROMPT].append(prompt)
            columns[ANSWER].append(ids)
            columns[GOOD].append(good)
    return ready(columns)


KTO = Preference(
    KTOConfig,
    JudgedTrainer,
    rows,
    JudgedCollator,
    # Rows come in our own order whatever this says; TRL wants to hear it.
    {
        "max_length": None,
        "precompute_ref_log_probs": False,
        "train_sampling_strategy": "sequential",
    },
)
