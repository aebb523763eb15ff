"""Tell lack of memory from other failures, and say which settings would fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tasks.errors import OutOfMemory
from tasks.training.collators import NO_LOSS
from tasks.training.inspect_worker import memory_estimate
from tasks.training.job import InspectionJob, TrainingJob
from tasks.training.loading import Precision
from tasks.training.methods.limits import smallest_batch
from tasks.training.preflight import longest_rows

_SIGNS = (
    "defaultcpuallocator: can't allocate memory",
    "defaultcpuallocator: not enough memory",
    "cuda error: out of memory",
    "cuda out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cannot allocate memory",
)
_LOOKED_AT = 64
"""Rows in which the longest answer is looked for."""
USABLE = 0.9
"""Share of the free memory that a training may plan with: the estimate knows nothing of fragments."""
SMALLER = 0.75
"""Where the estimate had said that it would fit: of what it said, take so much."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, CUDA or Python failed for lack of memory; they raise different classes."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(sign in text for sign in _SIGNS)


@contextmanager
def explained(what: Callable[[], str], advice: str) -> Iterator[None]:
    """Turn lack of memory inside the block into an OutOfMemory: what was being done, and the advice."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OutOfMemory(f"Memory ran out {what()}: {said}\n{advice}") from error


def smaller_base(free: int | None) -> str:
    """The ways out where not even the base fits; `free`: bytes before it was loaded."""
    said = "" if free is None else f"{_gb(free)} were free before. "
    return (
        f"{said}Load it in fewer bytes (training.dtype: bfloat16, or training.quantization: nf4), take a "
        "smaller base, or end what else uses this memory."
    )


def advice(job: TrainingJob, trainer: Any, precision: Precision, free: int | None) -> str:
    """What to say should memory run out in this training; `free`: bytes before the base was loaded."""
    rows = longest_rows(trainer.row_lengths, _LOOKED_AT)
    answers = [trainer.row_lengths[row] for row in rows]
    if "labels" in trainer.train_dataset.column_names:
        labels = trainer.train_dataset.select(rows)["labels"]
        answers = [sum(label != NO_LOSS for label in row) for row in labels]
    return MemoryAdvice(
        job,
        trainer.model.config,
        precision,
        parameters=trainer.model.get_nb_trainable_parameters(),
        longest=trainer.row_lengths[rows[0]],
        longest_answer=max(answers),
        free=free,
    ).words()


class MemoryAdvice:
    """Knows the model and its longest rows; says what to change when memory does not suffice."""

    def __init__(
        self,
        job: TrainingJob,
        config: Any,
        precision: Precision,
        *,
        parameters: tuple[int, int],
        longest: int,
        longest_answer: int,
        free: int | None,
    ) -> None:
        """`config`: the model's. `parameters`: trainable, and all. `longest`, `longest_answer`: tokens
        of the longest row or pack, and trained ones. `free`: bytes before the base was loaded.
        """
        self._config = config
        self._precision = precision
        self._parameters = parameters
        self._free = free
        same = set(TrainingJob.model_fields) & set(InspectionJob.model_fields)
        self._asked = InspectionJob(
            **job.model_dump(include=same),
            rows=1,
            longest=longest,
            longest_answer=longest_answer,
        )

    def words(self) -> str:
        """The estimate as it is, and the first change, from the mildest on, that would fit."""
        now = self._total(self._asked)
        free = "" if self._free is None else f", and {_gb(self._free)} were free before it"
        said = f"By estimate this training needs {_gb(now)} at its longest rows{free}."
        limit = now * SMALLER
        if self._free is not None and now > self._free * USABLE:
            limit = self._free * USABLE
        for change, asked in self._milder():
            needed = self._total(asked)
            if needed <= limit:
                return f"{said} Set {change}: {_gb(needed)}. That is another training, which starts anew."
        least = min((self._total(asked) for _, asked in self._milder()), default=now)
        return (
            f"{said} No batch and no method here would fit with certainty (the least is {_gb(least)}): "
            "shorten tokenization.max_length, which drops or refuses the longest rows, take a smaller "
            "base, or a machine with more memory."
        )

    def _milder(self) -> Iterator[tuple[str, InspectionJob]]:
        """What to set, and the training that it would make: the same rows in every optimizer step."""
        values = self._asked.training_config
        batch = int(values.get("per_device_train_batch_size", 8))
        accumulation = int(values.get("gradient_accumulation_steps", 1))
        sparing = bool(
            values.get("activation_checkpointing") or values.get("gradient_checkpointing")
        )
        last: tuple[dict[str, Any], list[str]] = ({}, [])
        for checkpointing in (False, True):
            if checkpointing and sparing:
                break
            for times in (n for n in range(1, batch + 1) if batch % n == 0):
                size = batch // times
                if size < smallest_batch(self._asked.method):
                    break
                changes: dict[str, Any] = {}
                words = []
                if times > 1:
                    changes |= {
                        "per_device_train_batch_size": size,
                        "gradient_accumulation_steps": accumulation * times,
                    }
                    words.append(
                        f"training.training_config.per_device_train_batch_size: {size} with "
                        f"gradient_accumulation_steps: {accumulation * times}"
                    )
                if checkpointing:
                    changes["activation_checkpointing"] = True
                    words.append("training.training_config.activation_checkpointing: true")
                if words:
                    yield " and ".join(words), self._changed(changes)
                last = changes, words
        if self._asked.quantization == "none":
            changes, words = last
            words = [*words, "training.quantization: nf4"]
            yield " and ".join(words), self._changed(changes, quantization="nf4")

    def _changed(self, training_config: dict[str, Any], **others: Any) -> InspectionJob:
        values = {"training_config": self._asked.training_config | training_config, **others}
        return self._asked.model_copy(update=values)

    def _total(self, asked: InspectionJob) -> int:
        trainable, every = self._parameters
        return memory_estimate(self._config, asked, self._precision, trainable, every)["total"]


def _gb(size: float) -> str:
    if size < 1e9:
        return f"{size / 1e6:.2g} MB" if size < 1e8 else f"{size / 1e6:.0f} MB"
    return f"{size / 1e9:.1f} GB" if size < 1e11 else f"{size / 1e9:.0f} GB"
