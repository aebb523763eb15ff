"""A base that is no model of transformers: its names and shapes, read off a file of weights."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from tasks.conversion.base_layers import BaseLayers
from tasks.errors import BaseModelError


class PlainBase(BaseLayers):
    """Modules as far as a state dict tells them; which table is an embedding shows by its adapter."""

    knows_convolutions = False

    def settle(self, name: str, columns: int) -> None:
        """Take a weight that only fits an adapter of `columns` columns as a table for an embedding."""
        module = self._modules.get(name)
        if isinstance(module, torch.nn.Linear) and module.bias is None:
            rows, width = module.weight.shape
            if columns == rows != width:
                table = torch.nn.Embedding(rows, width, device="meta")
                self.model.set_submodule(name, table)
                self._modules[name] = table


def load_plain_base(path: Path, *, shown: str) -> PlainBase:
    """Read the header of a safetensors file of `model.state_dict()`; the numbers stay where they are.

    A convolution's stride and padding are not in the file, and the conversion does not depend on
    them. Raises: BaseModelError when it is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BaseModelError(
            f"The base {shown} cannot be read as safetensors: {error}. Name a model's folder, or "
            "write its weights with safetensors.torch.save_file(model.state_dict(), path)."
        ) from error
    root = torch.nn.Module()
    for key in sorted(shapes):
        module, _, last = key.rpartition(".")
        if last == "weight" and module:
            _grow(root, module, _layer(shapes[key], f"{module}.bias" in shapes))
    for key, shape in shapes.items():
        module, _, last = key.rpartition(".")
        holder = _grow(root, module, None)
        if last not in dict(holder.named_parameters(recurse=False)):
            holder.register_parameter(
                last, torch.nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)
            )
    return PlainBase(root, shown=shown, is_causal_lm=False)


def _layer(shape: tuple[int, ...], bias: bool) -> torch.nn.Module | None:
    if len(shape) == 4:
        return torch.nn.Conv2d(shape[1], shape[0], shape[2:], bias=bias, device="meta")
    if len(shape) == 2:
        return torch.nn.Linear(shape[1], shape[0], bias=bias, device="meta")
    return None


def _grow(root: torch.nn.Module, name: str, leaf: torch.nn.Module | None) -> torch.nn.Module:
    """The module of this name; it and those above it are made where they are missing."""
    module = root
    parts = name.split(".") if name else []
    for at, part in enumerate(parts):
        child = module._modules.get(part)
        if child is None:
            child = (leaf if at == len(parts) - 1 else None) or torch.nn.Module()
            module.add_module(part, child)
        module = child
    return module
