"""Load a checkpoint back as soon as it is written: at hour six it is too late to find that it cannot be."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals

from tasks.errors import StageFailed
from tasks.training import checkpoints

_log = logging.getLogger(__name__)


def prove_checkpoint(checkpoint: Path, trainer: Any) -> None:
    """Read a complete checkpoint from the disk and compare it, bit by bit, with the running training.

    Raises: StageFailed when a part is missing, does not load, or holds anything else.
    """
    try:
        problem = next(_problems(checkpoint, trainer), None)
    except Exception as error:
        problem = f"reading it fails with {type(error).__name__}: {error}"
    if problem is None:
        _log.info("The checkpoint of step %d loads back", checkpoints.step_of(checkpoint))
        return
    raise StageFailed(
        f"The checkpoint that was just written to {checkpoint} cannot be gone on from: {problem}. "
        "An interruption would lose the whole training, so it stops now. Check the disk (other files "
        "on it, its file system's log), or point LORALINE_HOME at another one; where "
        "training.training_config.optim is an unusual one, try adamw_torch."
    )


def _problems(checkpoint: Path, trainer: Any) -> Iterator[str]:
    if not checkpoints.is_complete(checkpoint):
        yield "its files are not what was written"
    if trainer.in_parts:
        # Put together by all processes when they were written; here is one of them. DeepSpeed keeps its
        # optimizer in files of its own.
        weights, optimizer = trainer.written["adapter"], trainer.written.get("optimizer")
    else:
        with trainer.needs.checkpointing():
            weights = get_peft_model_state_dict(trainer.accelerator.unwrap_model(trainer.model))
        optimizer = trainer.optimizer.state_dict()
    kept = load_file(checkpoint / SAFETENSORS_WEIGHTS_NAME)
    yield from _differences("the adapter", kept, weights)
    with safe_globals():
        for name, running in (
            ("optimizer.pt", optimizer),
            ("scheduler.pt", trainer.lr_scheduler.state_dict()),
        ):
            if running is None:
                continue
            kept = torch.load(checkpoint / name, map_location="cpu", weights_only=True)
            yield from _differences(name, kept, running)
        for path in checkpoint.glob("rng_state*.pth"):
            if "cpu" not in torch.load(path, weights_only=True):
                yield f"{path.name} holds no random state"
    step = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step
    if step != trainer.state.global_step:
        yield f"trainer_state.json says step {step}, not {trainer.state.global_step}"


def _differences(where: str, kept: Any, running: Any) -> Iterator[str]:
    """What the two trees of dictionaries, lists, tensors and numbers do not have in common."""
    if isinstance(running, torch.Tensor):
        same = (
            isinstance(kept, torch.Tensor)
            and kept.dtype == running.dtype
            and torch.equal(kept.cpu(), running.detach().cpu())
        )
        if not same:
            yield f"{where} differs"
    elif isinstance(running, dict):
        if not isinstance(kept, dict) or kept.keys() != running.keys():
            yield f"{where} has other entries"
            return
        for key, value in running.items():
            yield from _differences(f"{where}: {key}", kept[key], value)
    elif isinstance(running, list | tuple):
        if not isinstance(kept, list | tuple) or len(kept) != len(running):
            yield f"{where} has another length"
            return
        for at, value in enumerate(running):
            yield from _differences(f"{where}: {at}", kept[at], value)
    elif isinstance(running, bool | int | float | str) and kept != running:
        yield f"{where} is {kept}, not {running}"
