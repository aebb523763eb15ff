"""Normalisation, gated activation and rotary positions with few passes over memory."""

from typing import Any

import torch
from torch.nn import functional


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
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    torch.mul(gradient, silu, out=d_up)
    # silu' = sigmoid + silu (1 - sigmoid)
    slope = (sigmoid + silu).addcmul_(silu, sigmoid, value=-1)
    torch.mul(gradient, up, out=d_gate)
    d_gate.mul_(slope)


class Rotary(torch.autograd.Function):
    """Rotate pairs (i, i + half) of x by the angles whose cosine and sine are given, twice each.

    x: (1, heads, tokens, width); cos, sin: (1, 1, tokens, width), the second half as the first.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, sign=1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradients[0], cos, sin, sign=-1), None, None


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
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
    """In place of a modeling file's `apply_rotary_pos_emb`."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return Rotary.apply(q, cos, sin), Rotary.apply(k, cos, sin)
