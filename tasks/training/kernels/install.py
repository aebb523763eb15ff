"""Put the fast kernels under a model for the time of its training, and take them away again.

What a module is told by is its parts and its name; whether it is what it looks like, `proof` asks.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from tasks.training.kernels import attention, last_layer, lora, pointwise

Autocast = Callable[[], AbstractContextManager[Any]]
_ROTARY = "apply_rotary_pos_emb"


class Kernels:
    """The kernels under one PEFT model. Nothing is changed before `install`."""

    def __init__(self, model: Any, autocast: Autocast) -> None:
        self._autocast = autocast
        self._model = model
        self._base = model.get_base_model()
        self._undo: list[Callable[[], None]] = []
        self._attention = self._base.config._attn_implementation
        self._trims = False
        self._all_linear = False
        self._adapters = ""
        self._pointwise = 0

    @property
    def head(self) -> Any:
        """The output head."""
        return self._base.get_output_embeddings()

    def hidden(self, positions: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Last hidden states at these positions of a line, (positions, width)."""
        decoder = getattr(self._base, self._base.base_model_prefix)
        if self._trims:
            inputs[last_layer.POSITIONS] = positions
        # Our layers compute in the base's format by themselves.
        with nullcontext() if self._all_linear else self._autocast():
            states: torch.Tensor = decoder(**inputs, use_cache=False).last_hidden_state.squeeze(0)
        return states if self._trims else states[positions]

    def install(self, *, pointwise_too: bool) -> None:
        """Attention by examples and fused LoRA layers; the small operations and the last layer as well."""
        attention.register()
        self._base.set_attn_implementation(attention.NAME)
        adapted = [m for m in self._model.modules() if isinstance(m, BaseTunerLayer)]
        against = [
            lora.reason_against(m) if isinstance(m, LoraLayer) else f"it is a {type(m).__name__}"
            for m in adapted
        ]
        plain = [m for m, reason in zip(adapted, against, strict=True) if reason is None]
        for layer in plain:
            self._replace(layer, "forward", lora.forward_of(layer))
        others = next((f" (not of others: {reason})" for reason in against if reason), "")
        self._adapters = f"fused adapters of {len(plain)} of {len(adapted)} modules{others}"
        self._all_linear = len(plain) == len(adapted)
        if pointwise_too:
            before = len(self._undo)
            self._install_pointwise()
            self._pointwise = len(self._undo) - before
            layers = list(_decoder_layers(self._base))
            if layers and last_layer.fits(layers[-1]):
                last, self._trims = layers[-1], True
                forward, projection = last_layer.forwards_of(last)
                self._replace(last, "forward", forward)
                self._replace(last.self_attn.o_proj, "forward", projection)

    @property
    def described(self) -> str:
        """What is installed, in words."""
        parts = ["our kernels: attention by examples", self._adapters]
        if self._pointwise:
            parts.append(f"{self._pointwise} small operations")
        if self._trims:
            parts.append("the last layer at trained positions")
        return ", ".join(parts)

    def remove(self) -> None:
        """Everything as it was."""
        while self._undo:
            self._undo.pop()()
        self._all_linear = self._trims = False
        self._base.set_attn_implementation(self._attention)

    def _install_pointwise(self) -> None:
        files = set()
        for module in self._base.modules():
            files.add(type(module).__module__)
            if type(module).__name__.endswith("RotaryEmbedding"):
                self._replace(module, "forward", _rotating_later(module.forward))
            elif _is_rms_norm(module):
                self._replace(module, "forward", _norm_of(module))
            elif _is_silu(getattr(module, "activation_fn", None)) and hasattr(
                module, "gate_up_proj"
            ):
                self._replace(module, "forward", _fused_mlp_of(module))
            elif _is_silu(getattr(module, "act_fn", None)) and hasattr(module, "gate_proj"):
                self._replace(module, "forward", _mlp_of(module))
        for name in files:
            file = sys.modules[name]
            if hasattr(file, _ROTARY) and hasattr(file, "rotate_half"):
                self._replace(file, _ROTARY, pointwise.rotate_queries_and_keys)

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        own = vars(owner).get(name)
        setattr(owner, name, value)

        def undo() -> None:
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)

        self._undo.append(undo)


def _decoder_layers(base: Any) -> Iterator[Any]:
    yield from getattr(getattr(base, base.base_model_prefix), "layers", ())


def _is_silu(activation: Any) -> bool:
    return isinstance(activation, torch.nn.SiLU) or type(activation).__name__ == "SiLUActivation"


def _is_rms_norm(module: Any) -> bool:
    """Of Llama's kind: told from Gemma's, which adds one to its weight, by what it computes."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", None)
    if not type(module).__name__.endswith("RMSNorm") or eps is None or weight is None:
        return False
    if weight.requires_grad or weight.dim() != 1:
        return False
    sample = torch.linspace(-2, 3, weight.numel()).to(weight.dtype)[None]
    with torch.no_grad():
        ours = pointwise.RmsNorm.apply(sample, weight, eps)
        return bool(torch.allclose(ours.float(), module(sample).float(), rtol=0.02, atol=0.02))


def _rotating_later(angles: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **named: Any) -> Any:
        cos, sin = angles(*args, **named)
        pointwise.Rotation(cos, sin)
        return cos, sin

    return forward


def _norm_of(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = pointwise.RmsNorm.apply(
            hidden_states, norm.weight, norm.variance_epsilon
        )
        return output

    return forward


def _fused_mlp_of(mlp: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        both = mlp.gate_up_proj(hidden_states)
        output: torch.Tensor = mlp.down_proj(pointwise.FusedGatedSilu.apply(both))
        return output

    return forward


def _mlp_of(mlp: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        gated = pointwise.GatedSilu.apply(mlp.gate_proj(x), mlp.up_proj(x))
        output: torch.Tensor = mlp.down_proj(gated)
        return output

    return forward
