"""Which trained biases belong to a checkpoint: loralib's three modes, held against the base's own names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tasks.conversion.listing import listed
from tasks.conversion.sidecar import BiasMode
from tasks.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from tasks.conversion.base_layers import Layer

_MODES: tuple[BiasMode, ...] = ("none", "lora_only", "all")
_MASK_NAMES = ("bias", "masked_bias")


class _Sized(Protocol):
    @property
    def shape(self) -> Collection[int]: ...


@dataclass(frozen=True)
class Biases:
    """A checkpoint's tensors that are not LoRA's, by the base's names."""

    mode: BiasMode
    tensors: dict[str, Tensor]


def expected_biases(
    mode: BiasMode, base_tensors: Collection[str], layers: Collection[Layer]
) -> set[str]:
    """The base's names of what `lora_state_dict(model, bias=mode)` holds beside LoRA's tensors.

    A `Conv2d` of loralib keeps its bias in an inner module, where `lora_only` does not find it.
    """
    if mode == "none":
        return set()
    if mode == "all":
        return {name for name in base_tensors if "bias" in name}
    return {f"{layer.name}.bias" for layer in layers if layer.has_bias and layer.kind == "linear"}


def conv_bias_names(layers: Collection[Layer]) -> dict[str, str]:
    """loralib's name of each adapted `Conv2d`'s bias, by the base's: it lies in an inner module."""
    convs = [layer.name for layer in layers if layer.kind == "conv2d" and layer.has_bias]
    return {f"{name}.bias": f"{name}.conv.bias" for name in convs}


def is_causal_mask(name: str, tensor: Tensor) -> bool:
    """Whether this is a buffer with which older GPT-2 code masks the future, named as if a bias.

    `bias=all` saves every name that contains "bias". The newer code computes its masks.
    """
    if name.rsplit(".", 1)[-1] not in _MASK_NAMES:
        return False
    if tensor.dim() == 0:
        return float(tensor) <= -1e4
    square = tensor.dim() == 4 and tensor.shape[:2] == (1, 1) and tensor.shape[2] == tensor.shape[3]
    return square and bool((tensor == tensor.new_ones(tensor.shape).tril()).all())


def check_biases(
    found: Mapping[str, Tensor],
    mode: BiasMode | None,
    base_tensors: Mapping[str, _Sized],
    layers: Collection[Layer],
    *,
    source: str,
) -> Biases:
    """The checkpoint's mode, and its biases once they are all there and fit the base.

    Raises: UserError with every name that is missing, unexpected or of another shape.
    """
    wanted = {m: expected_biases(m, base_tensors, layers) for m in _MODES}
    if mode is None:
        mode = next((m for m in _MODES if wanted[m] == set(found)), None)
    if mode is None:
        # There are biases. The mode that explains most of them has the shortest complaint.
        nearest = min(_MODES[1:], key=lambda m: len(wanted[m] ^ set(found)))
        raise _uncovered(set(found), wanted[nearest], nearest, source, guessed=True)
    if wanted[mode] != set(found):
        raise _uncovered(set(found), wanted[mode], mode, source, guessed=False)
    wrong = [
        f"{name}: {tuple(tensor.shape)}, the base has {tuple(base_tensors[name].shape)}"
        for name, tensor in found.items()
        if tuple(tensor.shape) != tuple(base_tensors[name].shape)
    ]
    if wrong:
        raise UserError(f"{source}: biases do not fit the base:\n{listed(wrong)}")
    broken = [name for name, tensor in found.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise UserError(f"{source}: biases hold NaN or infinite numbers:\n{listed(broken)}")
    return Biases(mode, dict(found))


def _uncovered(
    found: set[str], wanted: set[str], mode: BiasMode, source: str, *, guessed: bool
) -> UserError:
    lines = [
        f"{source}: its biases are those of no mode of loralib; nearest is bias={mode}:"
        if guessed
        else f"{source}: its biases are not those of bias={mode}:"
    ]
    for told, names in (("missing", wanted - found), ("unexpected", found - wanted)):
        if names:
            lines.append(f"{told}, by the base's names ({len(names)}):\n{listed(sorted(names))}")
    lines.append(
        "Save with the mode that mark_only_lora_as_trainable had, "
        "lora.lora_state_dict(model, bias=...), or name the right base or --architecture."
    )
    return UserError("\n".join(lines))
