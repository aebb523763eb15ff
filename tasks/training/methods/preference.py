"""What a preference method brings along: TRL's classes in our frame, and its rows and batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from datasets import Dataset

from tasks.methods import Method
from tasks.training.method_trainer import MethodTrainer


class PreferenceTrainer(MethodTrainer):
    """What the trainers of these methods share."""

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
