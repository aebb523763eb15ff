"""The processes of one training: which of them this is, and what they must agree upon."""

import os
from typing import Any

import torch
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from tasks.errors import StageFailed, UserError
from tasks.training.spread import Sharding
from tasks.worker import emit

_agreeing: list[Any] = []


def rank() -> int:
    """This process's number among all, from 0."""
    return int(os.environ["RANK"]) if distributed.is_torchelastic_launched() else 0


def is_first() -> bool:
    """Whether this process is the one that writes files and tells the parent how things go."""
    return rank() == 0


def take_own_device() -> None:
    """Compute on the GPU of this process's number on its machine.

    Raises: UserError when the machine has fewer GPUs than processes.
    """
    if not torch.cuda.is_available() or not distributed.is_torchelastic_launched():
        return
    own, all_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if all_here > torch.cuda.device_count():
        raise UserError(
            f"training.processes is {all_here}, and this machine shows {torch.cuda.device_count()} "
            "GPUs. Lower training.processes, or let CUDA_VISIBLE_DEVICES name more."
        )
    torch.cuda.set_device(own)


def refuse_lost_processes(wanted: int, started: int) -> None:
    """Raises: StageFailed when the launcher started another number of processes than it was told to."""
    if wanted != started:
        raise StageFailed(
            f"The training should run in {wanted} processes, and the launcher started {started}. "
            "Something in this machine's environment decides otherwise (ACCELERATE_*, WORLD_SIZE, "
            "LOCAL_RANK, a scheduler's variables): unset it, or set training.processes: 1."
        )


def own_random_state(seed: int) -> None:
    """Random numbers of this process's own: with common ones, rows of different processes would lose
    the same units to dropout."""
    if rank() > 0:
        torch.manual_seed((seed + 1_000_003 * rank()) % 2**63)


def any_of_us(here: bool) -> bool:
    """Whether it is so in any process; all must ask at the same point, and none waits for its GPU."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return here
    if not _agreeing:
        _agreeing.append(distributed.new_group(backend="gloo"))
    flag = torch.tensor([int(here)])
    distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=_agreeing[0])
    return bool(flag.item())


def wait_for_all() -> None:
    """Return when every process has come to this point."""
    any_of_us(False)


def told_by_the_first(value: Any) -> Any:
    """The first process's value, in all of them."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def part() -> None:
    """Leave the group: nothing is exchanged any more."""
    if distributed.is_initialized():
        wait_for_all()
        _agreeing.clear()
        distributed.destroy_process_group()


def inside(model: Any, compute: Any) -> torch.Tensor:
    """`compute()` as the forward pass of `model`: what wraps it then exchanges the gradients."""
    if not isinstance(model, DistributedDataParallel):
        return compute()
    module = model.module
    own = vars(module).get("forward")

    def forward() -> torch.Tensor:
        restore()
        return compute()

    def restore() -> None:
        if own is None:
            vars(module).pop("forward", None)
        else:
            module.forward = own

    module.forward = forward
    try:
        return model()
    finally:
        restore()


class TellSpread(TrainerCallback):
    """Says, and makes sure, that the gradients of all processes are put together."""

    def __init__(self, trainer: Any, sharding: Sharding = "none") -> None:
        self._trainer = trainer
        self._sharding = sharding

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called when the model is wrapped, before the first step."""
        if args.world_size == 1:
            return
        model = self._trainer.model_wrapped
        wrapper = type(model).__name__
        if self._sharding == "fsdp2":
            right = isinstance(model, FSDPModule)
        elif self._sharding == "none":
            right = isinstance(model, DistributedDataParallel)
        else:
            right = wrapper == "DeepSpeedEngine"
        if not right:
            raise StageFailed(
                f"{args.world_size} processes train with training.sharding: {self._sharding}, and the model "
                f"is wrapped in {wrapper}: each might train an adapter of its own, or hold a whole base. "
                "Set training.processes: 1 and report this."
            )
        if is_first():
            backend = distributed.get_backend()
            text = f"Training in {args.world_size} processes ({wrapper} over {backend})."
            emit("note", message=text)
