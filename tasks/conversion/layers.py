"""One adapted module from loralib's tensors to PEFT's and back, with every shape checked in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.conversion.blocks import gather_conv, gather_merged, spread_conv, spread_merged
from tasks.conversion.job import ConvertedModule, Kind
from tasks.conversion.listing import short
from tasks.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.conversion.base_layers import Layer
    from tasks.conversion.sidecar import LoraSpec


@dataclass(frozen=True)
class LoraPair:
    """The two matrices of a module and what scales their product."""

    a: Tensor
    b: Tensor
    r: int
    alpha: float

    @property
    def scaling(self) -> float:
        """What the product is multiplied with."""
        return self.alpha / self.r


def to_peft(layer: Layer, spec: LoraSpec, a: Tensor, b: Tensor) -> tuple[LoraPair, ConvertedModule]:
    """PEFT's pair of the same weight change: rank and alpha grow alike, so the scaling stays.

    Raises: UserError when r or alpha is unknown, or the tensors do not fit what was said of them.
    """
    if spec.r is None or spec.alpha is None:
        lacking = " and ".join(
            f"--{name}" for name, value in (("r", spec.r), ("alpha", spec.alpha)) if value is None
        )
        raise UserError(
            f"{layer.name}: give {lacking} as the model was built with (or a sidecar file); "
            "loralib stores neither."
        )
    kind = _kind(layer, spec.enable_lora)
    _check_shapes(layer, kind, spec.r, spec.enable_lora, a, b)
    _check_numbers(layer.name, a, b)
    factor = 1
    if kind == "MergedLinear":
        assert spec.enable_lora is not None
        factor = sum(spec.enable_lora)
        b = spread_merged(b, layer.out_features, spec.enable_lora)
    elif kind == "Conv2d":
        factor = layer.kernel**2
        a, b = spread_conv(a, b, layer.kernel)
    pair = LoraPair(a, b, spec.r * factor, spec.alpha * factor)
    return pair, _told(layer, kind, spec.r, spec.alpha, spec.enable_lora, pair)


def to_loralib(layer: Layer, spec: LoraSpec, pair: LoraPair) -> tuple[LoraPair, ConvertedModule]:
    """loralib's pair of the same weight change. `spec` says what PEFT's side cannot: `enable_lora`.

    Raises: UserError when loralib has no layer that makes this change.
    """
    _check_numbers(layer.name, pair.a, pair.b)
    kind = _kind(layer, spec.enable_lora)
    factor = 1
    if kind == "MergedLinear":
        assert spec.enable_lora is not None
        factor = sum(spec.enable_lora)
    elif kind == "Conv2d":
        factor = layer.kernel**2
    if pair.r % factor:
        raise UserError(
            f"{layer.name}: its rank {pair.r} is no multiple of {factor}, as that of a loralib "
            f"{_shown(kind, layer, spec.enable_lora)} always is."
        )
    a, b = pair.a, pair.b
    if kind == "MergedLinear":
        assert spec.enable_lora is not None
        b = gather_merged(pair.b, spec.enable_lora)
        again = pair.a, spread_merged(b, layer.out_features, spec.enable_lora)
    elif kind == "Conv2d":
        a, b = gather_conv(pair.a, pair.b, layer.kernel)
        again = spread_conv(a, b, layer.kernel)
    else:
        again = a, b
    other = sum(
        int((ours != theirs).sum()) for ours, theirs in zip(again, (pair.a, pair.b), strict=True)
    )
    if other:
        raise UserError(
            f"{layer.name}: {other} numbers of its lora_A and lora_B do not lie in the blocks of a "
            f"loralib {_shown(kind, layer, spec.enable_lora)}, which cannot express this change of "
            "the weight. Only what came from such a layer goes back into one."
        )
    r, alpha = pair.r // factor, pair.alpha / factor
    if spec.r is not None and spec.r != r:
        raise UserError(f"{layer.name}: its tensors make r={r}, and r={spec.r} is asked for.")
    if spec.alpha is not None:
        # Told exactly where dividing the product would round.
        if not math.isclose(spec.alpha, alpha, rel_tol=1e-12):
            raise UserError(
                f"{layer.name}: its scaling makes alpha={alpha:g} at r={r}, and alpha={spec.alpha:g} "
                "is asked for."
            )
        alpha = spec.alpha
    found = LoraPair(a, b, r, alpha)
    return found, _told(layer, kind, r, alpha, spec.enable_lora, pair)


def _kind(layer: Layer, enable_lora: tuple[bool, ...] | None) -> Kind:
    if layer.kind != "linear":
        if enable_lora is not None:
            raise UserError(
                f"{layer.name}: enable_lora belongs to a MergedLinear, and the base has a "
                f"{layer.shown} there."
            )
        return "Embedding" if layer.kind == "embedding" else "Conv2d"
    if enable_lora is None:
        return "Linear"
    if not any(enable_lora):
        raise UserError(
            f"{layer.name}: enable_lora enables no block, and such a layer has no LoRA tensors."
        )
    if layer.out_features % len(enable_lora):
        raise UserError(
            f"{layer.name}: enable_lora has {len(enable_lora)} entries, which do not divide the "
            f"{layer.out_features} output rows of the base's {layer.shown} into equal blocks."
        )
    return "MergedLinear"


def _expected(
    layer: Layer, kind: Kind, r: int, enable_lora: tuple[bool, ...] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of loralib's lora_A and lora_B."""
    columns, rows = layer.in_features, layer.out_features
    if kind == "Conv2d":
        k = layer.kernel
        return (r * k, columns * k), (rows * k, r * k)
    if kind == "MergedLinear" and enable_lora is not None:
        enabled = sum(enable_lora)
        return (r * enabled, columns), (rows // len(enable_lora) * enabled, r)
    return (r, columns), (rows, r)


def _check_shapes(
    layer: Layer, kind: Kind, r: int, enable_lora: tuple[bool, ...] | None, a: Tensor, b: Tensor
) -> None:
    found = tuple(a.shape), tuple(b.shape)
    wanted = _expected(layer, kind, r, enable_lora)
    if found == wanted:
        return
    raise UserError(
        f"{layer.name}: a {_shown(kind, layer, enable_lora)} of r={r} on the base's {layer.shown} has "
        f"lora_A {_size(wanted[0])} and lora_B {_size(wanted[1])}; the checkpoint has "
        f"{_size(found[0])} and {_size(found[1])}.{_likely(layer, r, enable_lora, *found)}"
    )


def _likely(
    layer: Layer,
    r: int,
    enable_lora: tuple[bool, ...] | None,
    a: tuple[int, ...],
    b: tuple[int, ...],
) -> str:
    """What would fit these shapes: another r, or blocks that nobody named."""
    if len(a) != 2 or len(b) != 2 or 0 in a + b:
        return ""
    kind = _kind(layer, enable_lora)
    actual = b[1] // layer.kernel
    if actual and _expected(layer, kind, actual, enable_lora) == (a, b):
        return f" They fit r={actual}: give --r {short(layer.name)}={actual}."
    if layer.kind != "linear" or a[1] != layer.in_features or a[0] % b[1]:
        return " The checkpoint is of another base, or of another kind of layer."
    enabled = a[0] // b[1]
    blocks, rest = divmod(layer.out_features * enabled, b[0])
    if rest or blocks < enabled:
        return " The checkpoint is of another base, or of another kind of layer."
    if blocks == enabled == 1:
        return f" They fit a Linear of r={b[1]}, without enable_lora."
    other = "" if b[1] == r else f" of r={b[1]}"
    return (
        f" They fit a MergedLinear{other} with {enabled} of {blocks} blocks enabled; say which: "
        f"--enable-lora {short(layer.name)}={','.join(['1'] * enabled + ['0'] * (blocks - enabled))} (the "
        "order of 1 and 0 is yours to know, no file says it)."
    )


def _check_numbers(name: str, a: Tensor, b: Tensor) -> None:
    for which, tensor in (("lora_A", a), ("lora_B", b)):
        if not tensor.is_floating_point():
            raise UserError(f"{name}: {which} is of {tensor.dtype}, and not of floating point.")
        if bad := int((~tensor.isfinite()).sum()):
            raise UserError(
                f"{name}: {bad} of {tensor.numel()} numbers of {which} are NaN or infinite. The "
                "training diverged; take an earlier checkpoint."
            )


def _told(
    layer: Layer,
    kind: Kind,
    r: int,
    alpha: float,
    enable_lora: tuple[bool, ...] | None,
    pair: LoraPair,
) -> ConvertedModule:
    return ConvertedModule(
        name=layer.name,
        kind=kind,
        r=r,
        alpha=alpha,
        enable_lora=list(enable_lora) if enable_lora is not None else None,
        peft_r=pair.r,
        peft_alpha=pair.alpha,
    )


def _shown(kind: Kind, layer: Layer, enable_lora: tuple[bool, ...] | None) -> str:
    if enable_lora is not None:
        return f"MergedLinear with blocks {','.join(str(int(on)) for on in enable_lora)}"
    if kind == "Conv2d":
        return f"Conv2d of kernel {layer.kernel}"
    return kind


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape) or "a single number"
