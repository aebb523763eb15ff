"""The loss of the answers' tokens, whose gradient is computed while the logits are at hand."""

from typing import Any

import torch

_CHUNK_BYTES = 16_000_000
"""Of one chunk's logits in float32: about what the processor's cache holds."""


class AnswerLoss(torch.autograd.Function):
    """Sum of negative log-likelihoods (nats) of `targets`, in float64.

    hidden: (positions, width); weight of the output head, frozen: (vocabulary, width); targets:
    (positions,). In float64, because the sum must not depend on how rows are laid out.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        gradient = torch.empty_like(hidden)
        rows = max(16, _CHUNK_BYTES // (4 * len(weight)))
        for begin in range(0, len(hidden), rows):
            part = slice(begin, begin + rows)
            logits = torch.nn.functional.linear(hidden[part], weight, bias).float()
            logs = torch.log_softmax(logits, -1)
            wanted = targets[part, None]
            total -= logs.gather(1, wanted).sum(dtype=torch.float64)
            if ctx.needs_input_grad[0]:
                slope = logs.exp_().scatter_add_(
                    1, wanted, -torch.ones_like(wanted, dtype=logs.dtype)
                )
                torch.mm(slope.to(weight.dtype), weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None, None
