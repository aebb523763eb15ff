"""Use the kernels only where they are seen to compute what the model and PEFT compute."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tasks.training import losses
from tasks.training.collators import NO_LOSS, Collator, LineCollator
from tasks.training.kernels.install import Autocast, Kernels

_log = logging.getLogger(__name__)
_ROWS = 3
_MOST_TOKENS = 128
"""Of a row of the proof: long enough for every kernel, short enough for a large model."""
_SHARED = 16
"""Tokens with which all rows of the proof begin, as do those of a task with a system prompt."""
_LEAST_TOKENS = 24
"""Of a row of the proof: some answers behind the shared ones."""
_SPREAD = 0.05
"""Standard deviation of the adapter's weights during the proof: at their start half of them are
zero, and with them half of the gradients."""
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Allowed difference of the gradients, relative to their norm; a tenth of that for the loss."""
_OTHER_CALLS = (
    NotImplementedError,
    TypeError,
    AttributeError,
    KeyError,
    RuntimeError,
    ValueError,
)
"""What a model raises that calls its parts otherwise than the kernels expect."""


def proved_kernels(
    model: Any, rows: Any, autocast: Autocast, tell: Callable[[str], None] = _log.info
) -> Kernels | None:
    """Kernels under the model, all of them or the larger ones alone; None where neither is equal.

    `tell` hears which compute, and why others do not.

    Loss and gradients of a few rows are compared with those of the model as it is. The adapter's
    weights are left as they were, and no random state is used up.
    """
    sample = _sample(rows)
    with _spread_weights(model) as parameters:
        head = model.get_output_embeddings()
        with autocast():
            alone = losses.sum_over_answers(model, head, Collator(0, 1)(sample))
        expected = _with_gradient(alone, parameters)
        reasons: list[str] = []
        for pointwise in (True, False):
            kernels = Kernels(model, autocast)
            try:
                kernels.install(pointwise_too=pointwise)
                line = losses.sum_over_line(kernels, LineCollator()(sample))
                found = _with_gradient(line, parameters)
                reason = _apart(found, expected, _TOLERANCE[model.dtype])
            except _OTHER_CALLS as error:
                said = (str(error).strip() or "no message").splitlines()[0]
                reason = f"they do not fit the model ({type(error).__name__}: {said})"
            if not reason:
                without = "".join(
                    f"; those for the small operations are left out: {why}" for why in reasons
                )
                tell(f"Computing with {kernels.described}{without}.")
                return kernels
            reasons.append(reason)
            kernels.remove()
    tell(f"Computing with the libraries' kernels, more slowly than with ours: {reasons[-1]}.")
    return None


def _sample(rows: Any) -> list[dict[str, Any]]:
    """A few rows of different lengths that begin alike; behind that every second token is labelled."""
    chosen = [_lengthened(rows[at % len(rows)]["input_ids"]) for at in range(_ROWS)]
    sample = []
    for at, row in enumerate(chosen):
        ids = chosen[0][:_SHARED] + row[_SHARED : _MOST_TOKENS - 17 * at]
        labels = [
            token if place > _SHARED and place % 2 else NO_LOSS for place, token in enumerate(ids)
        ]
        sample.append({"input_ids": ids, "labels": labels})
    return sample


def _lengthened(ids: Sequence[int]) -> list[int]:
    """Short rows prove nothing of what longer ones have in common."""
    return list(ids) * max(1, -(-_LEAST_TOKENS // len(ids)))


@contextmanager
def _spread_weights(model: Any) -> Iterator[list[torch.nn.Parameter]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(0)
    training = model.training
    model.train()
    try:
        with torch.no_grad():
            for p in parameters:
                p.copy_(torch.randn(p.shape, generator=generator) * _SPREAD)
        yield parameters
    finally:
        model.train(training)
        with torch.no_grad():
            for p, before in zip(parameters, kept, strict=True):
                p.copy_(before)


def _with_gradient(
    loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter]
) -> tuple[float, torch.Tensor]:
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = [
        torch.zeros_like(p).flatten() if g is None else g.float().flatten()
        for p, g in zip(parameters, gradients, strict=True)
    ]
    return loss.item(), torch.cat(flat)


def _apart(
    found: tuple[float, torch.Tensor], expected: tuple[float, torch.Tensor], tolerance: float
) -> str:
    """What is not equal; empty where both are."""
    loss = abs(found[0] - expected[0]) / abs(expected[0])
    gradient = float((found[1] - expected[1]).norm() / expected[1].norm())
    # Written so that NaN is refused too.
    if loss <= tolerance / 10 and gradient <= tolerance:
        return ""
    return (
        f"they give another loss or gradients (by {loss:.2%} and {gradient:.2%}; allowed are "
        f"{tolerance / 10:.2%} and {tolerance:.2%})"
    )
