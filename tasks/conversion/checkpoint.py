"""Read and write loralib checkpoints: the one place where a pickle is opened, and nothing in it executed."""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tasks.conversion.listing import listed
from tasks.conversion.sidecar import CheckpointLayout
from tasks.errors import UserError

CONTAINERS = ("model_state_dict", "state_dict", "model")
"""Entries under which training scripts keep the tensors, loralib's own example the first of them."""
WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file by their names in the model, in the file's order."""

    tensors: dict[str, torch.Tensor]
    layout: CheckpointLayout
    left_out: list[str]
    """Other entries of a training script's dictionary."""


def read_checkpoint(path: Path, top_names: set[str]) -> Checkpoint:
    """Read `torch.save(lora.lora_state_dict(model), path)`, or the same as safetensors.

    `top_names` are the first parts of the base's module names: where `module` is one of them, it is
    not taken for a wrapper.

    Raises: UserError when the file is neither, would execute code, or holds something else.
    """
    value = _safetensors(path) if path.suffix == SAFETENSORS else _unpickled(path)
    container, left_out = None, list[str]()
    if isinstance(value, Mapping):
        found = [name for name in CONTAINERS if isinstance(value.get(name), Mapping)]
        if found:
            container, left_out = found[0], [str(key) for key in value if key != found[0]]
            value = value[container]
    tensors = _tensors(value, path)
    prefix = _wrapper(list(tensors), top_names)
    tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    layout = CheckpointLayout(keys=list(tensors), prefix=prefix, container=container)
    return Checkpoint(tensors, layout, left_out)


def write_checkpoint(
    path: Path, tensors: dict[str, torch.Tensor], layout: CheckpointLayout
) -> None:
    """Write what `read_checkpoint` reads; a container is not kept in safetensors, which has none."""
    named = {layout.prefix + key: tensors[key].contiguous() for key in layout.keys}
    if path.suffix == SAFETENSORS:
        save_file(named, path)
    else:
        torch.save({layout.container: named} if layout.container else named, path)


def _safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own words advise to load it without the restriction.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise UserError(
                f"{path} is refused: loading it would call `{found[1]}`, and a file of LoRA tensors "
                "calls nothing. Nothing of it was executed. Do not load it in another way either, "
                "unless you made it: where you did, save only lora.lora_state_dict(model)."
            ) from error
        raise UserError(
            f"{path} is not a checkpoint that torch.save wrote, or holds more than tensors. Nothing "
            "of it was executed. Save it with torch.save(lora.lora_state_dict(model), path)."
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        # A broken or foreign file ends in whatever the bytes happen to trigger.
        told = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} cannot be read as a checkpoint of torch.save: {told.split('. ')[0][:200]}. It is "
            "incomplete, or something else (TorchScript and NumPy archives are not read)."
        ) from error


def _tensors(value: Any, path: Path) -> dict[str, torch.Tensor]:
    if not isinstance(value, Mapping):
        raise UserError(
            f"{path} holds a {type(value).__name__} and not a dictionary of tensors. "
            "Save it with torch.save(lora.lora_state_dict(model), path)."
        )
    wrong = [
        f"{key} ({type(entry).__name__})"
        for key, entry in value.items()
        if not isinstance(key, str)
        or not isinstance(entry, torch.Tensor)
        or entry.layout != torch.strided
        or entry.is_quantized
    ]
    if wrong:
        raise UserError(
            f"{path} holds entries that are not plain tensors:\n{listed(wrong)}\n"
            f"Tensors are looked for at the top, or under {', '.join(CONTAINERS)}."
        )
    unread = [
        f"{key} ({'no numbers, only a shape' if entry.is_meta else str(entry.dtype)})"
        for key, entry in value.items()
        if entry.is_meta or entry.is_complex() or _is_one_byte_float(entry.dtype)
    ]
    if unread:
        raise UserError(
            f"{path} holds tensors that are no numbers of an adapter:\n{listed(unread)}\n"
            "loralib trains in float32, bfloat16 or float16. Save the checkpoint in one of them: "
            "torch.save({k: v.float() for k, v in lora.lora_state_dict(model).items()}, path), from a "
            "model whose weights were loaded."
        )
    if not value:
        raise UserError(f"{path} holds no tensors.")
    return {key: tensor.detach() for key, tensor in value.items()}


def _is_one_byte_float(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize < 2


def _wrapper(keys: list[str], top_names: set[str]) -> str:
    prefix = ""
    while found := next(
        (
            wrapper
            for wrapper in WRAPPERS
            if wrapper[:-1] not in top_names
            and all(key.startswith(prefix + wrapper) for key in keys)
        ),
        None,
    ):
        prefix += found
    return prefix
