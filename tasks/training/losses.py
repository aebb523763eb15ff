"""The loss of the labelled tokens, computed where they are predicted and nowhere else."""

from typing import Any

import torch
from torch.nn import functional

from tasks.training.collators import NO_LOSS
from tasks.training.kernels.attention import LAYOUT
from tasks.training.kernels.head import AnswerLoss
from tasks.training.kernels.install import Kernels


def sum_over_answers(model: Any, head: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Sum of negative log-likelihoods (nats) in float64; only labelled positions go through `head`.

    On a CPU TRL multiplies all of them there, and with the prompts' share of a batch that is most of
    the head's work. In float32 the sum would depend on how rows are laid out, packed or not.
    """
    labels = inputs["labels"][:, 1:]
    wanted = labels != NO_LOSS
    hook = head.register_forward_pre_hook(lambda _, hidden: (hidden[0][:, :-1][wanted],))
    try:
        others = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**others, use_cache=False).logits.float()
    finally:
        hook.remove()
    losses = functional.cross_entropy(logits, labels[wanted], reduction="none")
    return losses.sum(dtype=torch.float64)


def sum_over_line(kernels: Kernels, inputs: dict[str, Any]) -> torch.Tensor:
    """The same of a line of examples (`LineCollator`), computed by the kernels."""
    labels = inputs["labels"][0, 1:]
    wanted = (labels != NO_LOSS).nonzero()[:, 0]
    hidden = kernels.hidden(
        wanted,
        input_ids=inputs["input_ids"],
        position_ids=inputs["position_ids"],
        **{LAYOUT: inputs[LAYOUT]},
    )
    head = kernels.head
    total: torch.Tensor = AnswerLoss.apply(hidden, head.weight, head.bias, labels[wanted])
    return total
