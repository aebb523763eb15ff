"""The last decoder layer, computed only where an answer's token is predicted.

Whatever that layer makes of the other positions nobody reads: only their keys and values count.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch

from tasks.training.kernels.attention import ASKED

_PARTS = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")


POSITIONS = "answer_positions"
"""The model's keyword argument: positions of the line whose hidden states the loss needs."""


def fits(layer: Any) -> bool:
    """Whether a layer has the parts of a pre-norm decoder, and no others."""
    parts = {name for name, _ in layer.named_children()}
    dropouts = {name for name in parts if isinstance(getattr(layer, name), torch.nn.Dropout)}
    silent = all(getattr(layer, name).p == 0 for name in dropouts)
    return silent and parts - dropouts == set(_PARTS) and hasattr(layer.self_attn, "o_proj")


def forwards_of(layer: Any) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    """Forwards of the layer and of its attention's output projection.

    The layer's gives (1, positions, width) where it is called with `POSITIONS`, else what it gave.
    """
    project = layer.self_attn.o_proj.forward
    wanted = _Wanted()

    def projection(x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = project(_at(x, wanted.positions))
        return output

    def forward(hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        # Not kept from the forward pass: with checkpointing this runs again in the backward pass.
        wanted.positions = positions = kwargs.pop(POSITIONS, None)
        normal = layer.input_layernorm(hidden_states)
        attended, _ = layer.self_attn(hidden_states=normal, **kwargs, **{ASKED: positions})
        hidden = _at(hidden_states, positions) + attended
        wanted.positions = None
        output: torch.Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return output

    return forward, projection


class _Wanted(threading.local):
    """Which positions the layer is asked for just now, in each thread."""

    positions: torch.Tensor | None = None


def _at(x: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    return x if positions is None else x.index_select(1, positions)
