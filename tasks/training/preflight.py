"""Two steps on the longest rows before the first one: memory that does not suffice shows at once."""

import copy
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from tasks.training.kernels.attention import LAYOUT
from tasks.training.loading import peak_memory_bytes

_SHARDED = (DistributedType.DEEPSPEED, DistributedType.FSDP)
"""Their engines count what passes through them, which cannot be undone."""


class Preflight(TrainerCallback):
    """Right before the first step, when model and optimizer are in place."""

    def __init__(self, trainer: Any, note: Callable[[str], None]) -> None:
        self._trainer = trainer
        self._note = note

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A training that goes on from a checkpoint has made such steps before."""
        if state.global_step == 0 and self._trainer.accelerator.distributed_type not in _SHARDED:
            self._note(two_steps_and_back(self._trainer))


def two_steps_and_back(trainer: Any) -> str:
    """Make two steps on a micro-batch of the longest rows and undo them; what a person may know of it.

    Weights, optimizer, random state and the trainer's counts are afterwards what they were, bit by
    bit. An optimizer whose state cannot be undone is not asked to step.
    """
    started = time.monotonic()
    lengths = trainer.row_lengths
    rows = longest_rows(lengths, trainer.args.per_device_train_batch_size)
    optimizer = _inner(trainer.optimizer)
    undoable = type(optimizer).__module__.startswith("torch.optim") and not optimizer.state
    model = trainer.model_wrapped
    with _everything_kept(trainer, optimizer, undoable):
        for turn, collate in enumerate(_collators(trainer, rows)):
            batch = collate([trainer.train_dataset[row] for row in rows])
            items = trainer._get_num_items_in_batch([batch], trainer.args.device)
            # Each process for itself: a process that has too little memory leaves none waiting here.
            with trainer.accelerator.no_sync(model=model):
                trainer.training_step(model, batch, items)
            if turn == 0 and undoable:
                # Its averages come into being now, and lie in memory while the second step is made.
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return (
        f"Two steps on the longest rows ({len(rows)} of up to {lengths[rows[0]]:,} tokens) fit into "
        f"memory: {peak_memory_bytes() / 1e9:.2f} GB at most, in {time.monotonic() - started:.1f} s."
    )


def _collators(trainer: Any, rows: Sequence[int]) -> list[Callable[[Any], Any]]:
    """The trainer's own, twice; where the rows begin alike, one between that makes nothing of it.

    Other rows may not begin alike, and either may take more: the beginning comes with each part of a line.
    """
    own = trainer.data_collator
    layout = own([trainer.train_dataset[row] for row in rows]).get(LAYOUT)
    return [own, own.unshared, own] if layout and layout.shared else [own, own]


def longest_rows(lengths: Sequence[int], count: int) -> list[int]:
    """Places of the `count` longest rows, the longest one first."""
    return sorted(range(len(lengths)), key=lambda row: -lengths[row])[:count]


@contextmanager
def _everything_kept(trainer: Any, optimizer: Any, undoable: bool) -> Iterator[None]:
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    # In main memory: on the device they would make the steps look larger than they are.
    weights = [p.detach().to("cpu", copy=True) for p in parameters]
    counts = {
        name: copy.deepcopy(getattr(trainer, name))
        for name in ("_total_train_tokens", "_metrics", "_stored_metrics")
        if hasattr(trainer, name)
    }
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for name, value in counts.items():
            setattr(trainer, name, value)
        trainer.numbers.forget()
        optimizer.zero_grad(set_to_none=True)
        if undoable:
            optimizer.state.clear()
        with torch.no_grad():
            for parameter, before in zip(parameters, weights, strict=True):
                parameter.copy_(before)


def _inner(optimizer: Any) -> Any:
    """Torch's own, without accelerate's wrapper, which would skip a step between micro-batches."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
