"""What a preference method brings along: TRL's classes in our frame, and its rows and batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset

from tasks.methods import Method
from tasks.training.method_trainer import MethodTrainer


class PreferenceTrainer(MethodTrainer):
    """What the trainers of these methods share: the loss of an optimizer step is a mean over its rows.

    TRL's is a mean over micro-batches, in which the rows of a ragged one count for more.
    """

    loss_is_scaled_for_ga = True

    def rows_in(self, batch: dict[str, Any]) -> int:
        """Rows of a micro-batch: pairs, or judged answers."""
        raise NotImplementedError

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> Any:
        return torch.tensor(sum(map(self.rows_in, batch_samples)), device=device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's mean over the micro-batch; in training, its part of the mean over the step's rows."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if num_items_in_batch is None or return_outputs:
            return found
        return found * (self.rows_in(inputs) / num_items_in_batch)

    def judge_base(self, loss: float) -> None:
        """Nothing: a loss over preferences says nothing of how well the base knows its language."""


@dataclass(frozen=True)
class Preference:
    """One of the methods that learn from pairs of answers."""

    configuration: type
    """TRL's configuration class."""
    trainer: type[PreferenceTrainer]
    rows: Callable[[pa.Table], Dataset]
    """From token rows (`input_ids`, `prompt_length`, `rejected_ids`) to the columns of TRL's collator."""
    collator: Callable[[int, int], Any]
    """By the padding token and the multiple to which rows are padded."""
    owned: dict[str, Any] = field(default_factory=dict)
    """Fields of the configuration that only this method has, or reads differently."""


def preference_of(method: Method) -> Preference | None:
    """The preference method of that name; None for supervised ones.

    Imports one of TRL's trainers: the experimental ones warn when they are imported.
    """
    if method == "dpo":
        from tasks.training.methods.dpo import DPO

        return DPO
    if method == "orpo":
        from tasks.training.methods.orpo import ORPO

        return ORPO
    if method == "kto":
        from tasks.training.methods.kto import KTO

        return KTO
    return None


def lengths_of(rows: Dataset) -> list[int]:
    """Tokens of each row's longest answer with its prompt."""
    names = [name for name in rows.column_names if name.endswith("_ids") and name != PROMPT]
    columns: list[Sequence[Sequence[int]]] = [rows[name] for name in names]
    prompts = rows[PROMPT]
    return [
        len(prompt) + max(map(len, answers))
        for prompt, answers in zip(prompts, zip(*columns, strict=True), strict=True)
    ]


PROMPT, CHOSEN, REJECTED = "prompt_ids", "chosen_ids", "rejected_ids"
DESIRABLE = "desirable"


def pairs_of(table: pa.Table) -> dict[str, list[Any]]:
    """`prompt_ids`, `chosen_ids`, `rejected_ids` of token rows: exactly their tokens, none cut."""
    columns: dict[str, list[Any]] = {PROMPT: [], CHOSEN: [], REJECTED: []}
    wanted = table.select(["input_ids", "prompt_length", REJECTED])
    for batch in wanted.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            ids, prompt = row["input_ids"], row["prompt_length"]
            columns[PROMPT].append(ids[:prompt])
            columns[CHOSEN].append(ids[prompt:])
            columns[REJECTED].append(row[REJECTED])
    return columns
