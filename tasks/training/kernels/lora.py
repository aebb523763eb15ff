"""A linear layer with its LoRA as one step of autograd, everything in the base's number format.

PEFT's own layer copies its input to float32, makes four passes over the output, and keeps more of them
for the backward pass than the gradients need.
"""

from typing import Any

import torch


class LoraLinear(torch.autograd.Function):
    """y = x W^T + bias + scaling (x A^T) B^T, for a frozen W.

    x: (rows, in), W: (out, in), A: (rank, in), B: (out, rank); gradients for x, A and B.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        low, up = a.to(x.dtype), (b * scaling).to(x.dtype)
        inner = x @ low.T
        output = torch.nn.functional.linear(x, weight, bias)
        output.addmm_(inner, up.T)
        ctx.save_for_backward(x, weight, low, up, inner)
        ctx.scaling, ctx.dtypes = scaling, (a.dtype, b.dtype)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        x, weight, low, up, inner = ctx.saved_tensors
        d_inner = gradient @ up
        d_a = (d_inner.T @ x).to(ctx.dtypes[0])
        # The product of this shape is the faster one of the two.
        d_b = (inner.T @ gradient).T.to(ctx.dtypes[1]).mul_(ctx.scaling)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (gradient @ weight).addmm_(d_inner, low)
        return d_x, None, None, d_a, d_b, None


def reason_against(layer: Any) -> str | None:
    """Why a PEFT layer cannot be computed by `LoraLinear`; None where it can."""
    if len(layer.active_adapters) != 1 or layer.merged or layer.disable_adapters:
        return "more than one adapter"
    name = layer.active_adapters[0]
    base = layer.base_layer
    if type(base) is not torch.nn.Linear or base.weight.requires_grad:
        return f"its base is a {type(base).__name__}"
    if name in layer.lora_variant:
        return f"it is a {type(layer.lora_variant[name]).__name__}"
    if layer.lora_bias.get(name) or (base.bias is not None and base.bias.requires_grad):
        return "it trains a bias"
    if getattr(layer.lora_dropout[name], "p", 0.0) > 0:
        return "it has dropout"
    return None


def forward_of(layer: Any) -> Any:
    """The fused forward of a PEFT layer that `reason_against` has nothing against."""
    name = layer.active_adapters[0]
    a, b, scaling = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
    base = layer.base_layer

    def forward(x: torch.Tensor) -> torch.Tensor:
        # Not inside the step of autograd: attention looks for what its queries are views of.
        rows: torch.Tensor = LoraLinear.apply(
            x.flatten(0, -2), base.weight, base.bias, a.weight, b.weight, scaling
        )
        return rows.unflatten(0, x.shape[:-1])

    return forward
