"""An adapter whose tensors are spread over processes: made whole, written, and read back.

FSDP2 keeps a part of every parameter in each process (a DTensor), ZeRO-3 an empty one in most. What is
written are whole tensors under PEFT's own names, so that a checkpoint fits any number of processes and
the adapter is an ordinary one. All processes must call each of these functions at the same point.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from tasks.errors import StageFailed, UserError
from tasks.training.spread import Sharding

State = dict[str, Any]


def refuse_without_gpu(sharding: Sharding) -> None:
    """Raises: UserError on a CPU: accelerate would start the processes and shard nothing."""
    if sharding != "none" and not torch.cuda.is_available():
        raise UserError(
            f"training.sharding is {sharding}, and this machine has no GPU: accelerate shards models over "
            "GPUs only, and on a CPU would give each process a whole copy without a word. Write "
            "`sharding: none`: on one machine the processes' memory is the same."
        )


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the parts of all processes, on the CPU."""
    if hasattr(tensor, "ds_id"):
        with import_module("deepspeed").zero.GatheredParameters([tensor]):
            return tensor.detach().cpu().clone()
    found = tensor.detach()
    if isinstance(found, DTensor):
        found = found.full_tensor()
    if isinstance(found, AsyncCollectiveTensor):
        # Copied to a CPU from there, nothing has waited for it yet.
        found = found.wait()
    return found.cpu()


def adapter_state(model: Any) -> State:
    """The adapter's whole tensors by the names of PEFT's files."""
    trained = {name: whole(p) for name, p in model.named_parameters() if p.requires_grad}
    return dict(get_peft_model_state_dict(model, state_dict=trained, save_embedding_layers=False))


def save_adapter_state(model: Any, state: State, folder: Path) -> None:
    """Write what `adapter_state` gave, with its configuration; by one process alone."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(kept, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    model.peft_config["default"].save_pretrained(str(folder))


def load_adapter_state(model: Any, folder: Path) -> None:
    """Give each process its part of a written adapter.

    Raises: StageFailed when the file holds other tensors than the model.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parts = get_peft_model_state_dict(model, state_dict=trained, save_embedding_layers=False)
    kept = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    if odd := sorted(parts.keys() ^ kept.keys()):
        raise StageFailed(
            f"{folder / SAFETENSORS_WEIGHTS_NAME} holds another adapter than the one in training: "
            f"{len(odd)} tensors are in one of them only (first: {odd[0]})."
        )
    with torch.no_grad():
        for name, part in parts.items():
            full = kept[name].to(device=part.device, dtype=part.dtype)
            if isinstance(part, DTensor):
                own = distribute_tensor(full, part.device_mesh, part.placements)
                part.to_local().copy_(own.to_local())
            else:
                part.copy_(full)


def optimizer_state(model: Any, optimizer: Any) -> State:
    """The optimizer's whole tensors, on the CPU, by the parameters' names."""
    parts = get_optimizer_state_dict(model, optimizer)
    made: State = _each(parts)
    return made


def load_optimizer_state(model: Any, optimizer: Any, state: State) -> None:
    """Give each process's optimizer its part of what `optimizer_state` gave."""
    set_optimizer_state_dict(
        model, optimizer, state, options=StateDictOptions(full_state_dict=True)
    )


def on_a_whole_base(base: Any, config: Any, state: State) -> Any:
    """A model of one process with the adapter on it, as anybody will load it.

    Raises: StageFailed when the state is not all of the adapter.
    """
    from peft import get_peft_model

    config.inference_mode = False
    model = get_peft_model(base, config)
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    if odd := sorted(expected.keys() ^ state.keys()):
        raise StageFailed(
            f"The adapter that was put together from all processes is not whole: {len(odd)} tensors are "
            f"missing or left over (first: {odd[0]}). Nothing is published."
        )
    set_peft_model_state_dict(model, state)
    return model


def _each(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return whole(value)
    if isinstance(value, dict):
        return {key: _each(item) for key, item in value.items()}
    return [_each(item) for item in value] if isinstance(value, list) else value
