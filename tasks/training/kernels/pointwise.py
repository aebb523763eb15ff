"""Normalisation, gated activation and rotary positions with few passes over memory."""

from typing import Any

import torch
from torch.nn import functional

from tasks.training.kernels.layout import Asked, Group


class RmsNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, for a frozen weight.

    The mean is taken in float32, as the models do; so is the division, from x as it is.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = torch.rsqrt(length.square_().div_(x.shape[-1]).add_(eps)).to(x.dtype)
        normal = x * inverse
        ctx.save_for_backward(normal, inverse, weight)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        normal, inverse, weight = ctx.saved_tensors
        gradient = gradients[0] * weight
        along = (gradient * normal).mean(-1, keepdim=True)
        return gradient.addcmul_(normal, along, value=-1).mul_(inverse), None, None


class GatedSilu(torch.autograd.Function):
    """silu(gate) * up, for gate and up of any one shape."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        _gated_silu_gradients(gradients[0], gate, up, d_gate, d_up)
        return d_gate, d_up


class FusedGatedSilu(torch.autograd.Function):
    """silu(first half) * second half of the last dimension: gate and up of a fused projection."""

    @staticmethod
    def forward(ctx: Any, both: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, -1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        result = torch.empty_like(both)
        d_gate, d_up = result.chunk(2, -1)
        _gated_silu_gradients(gradients[0], gate, up, d_gate, d_up)
        return result


def _gated_silu_gradients(
    gradient: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    d_gate: torch.Tensor,
    d_up: torch.Tensor,
) -> None:
    """Written into the last two."""
    silu = functional.silu(gate)
    torch.mul(gradient, silu, out=d_up)
    d_silu = torch.mul(gradient, up, out=silu)
    torch.ops.aten.silu_backward.grad_input(d_silu, gate, grad_input=d_gate)


class Rotation:
    """The angles of a line's tokens, for attention to turn queries and keys by.

    It copies them anyway, a few examples at a time, and these copies are in the processor's cache.
    """

    _OF, _FOR = "rotation", "rotation_to_come"

    def __init__(self, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Leave the rotation by these cosines and sines, each (1, tokens, width), to attention."""
        self._angles = cos.detach(), sin.detach()
        self._groups: dict[Group | Asked, tuple[torch.Tensor, torch.Tensor]] = {}
        setattr(cos, self._OF, self)

    @classmethod
    def left_to_attention(cls, cos: torch.Tensor) -> "Rotation | None":
        """What was made of these cosines, None of those of another model."""
        return getattr(cos, cls._OF, None)

    def awaits(self, query: torch.Tensor) -> None:
        """Note that these queries, and their keys, are not yet turned."""
        setattr(query, self._FOR, self)

    @classmethod
    def awaited_by(cls, query: torch.Tensor) -> "Rotation | None":
        """What is left to do with these queries, None where nothing is."""
        return getattr(query, cls._FOR, None)

    def of(self, group: Group | Asked) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, each (count, 1, length, width): one for all heads, and for all layers."""
        if group not in self._groups:
            cos, sin = (group.take(x)[0, :, None] for x in self._angles)
            self._groups[group] = cos, sin
        return self._groups[group]


class Rotary(torch.autograd.Function):
    """Rotate pairs (i, i + half) of x by the angles whose cosine and sine are given, twice each.

    x: (1, heads, tokens, width); cos, sin: (1, 1, tokens, width), the second half as the first.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return rotated(x, cos, sin, sign=1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return rotated(gradients[0], cos, sin, sign=-1), None, None


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
    """Pairs (i, i + half) of x turned by the angles of these cosines and sines; back with sign -1."""
    width = cos.shape[-1]
    half = width // 2
    turned = (
        x * cos if width == x.shape[-1] else torch.cat([x[..., :width] * cos, x[..., width:]], -1)
    )
    sin = sin[..., :half]
    turned[..., :half].addcmul_(x[..., half:width], sin, value=-sign)
    turned[..., half:width].addcmul_(x[..., :half], sin, value=sign)
    return turned


def rotate_queries_and_keys(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    unsqueeze_dim: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """In place of a modeling file's `apply_rotary_pos_emb`, for each of its models."""
    if (rotation := Rotation.left_to_attention(cos)) is not None:
        rotation.awaits(q)
        return q, k
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return Rotary.apply(q, cos, sin), Rotary.apply(k, cos, sin)
