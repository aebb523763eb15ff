"""Which rows of a fused projection compute what: the queries in `qkv_proj`, the gate in `gate_up_proj`.

Read from the config alone, without torch. A kind of model is in the table once a test has shown by
scaling rows that they are what they are called; interleaved layouts (a head's q, k and v side by side)
are not.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

TargetSlices = Mapping[str, Sequence[str]]
"""Module name (the last part) -> names of the blocks that are trained."""


def blocks_of(config: Mapping[str, Any], module: str) -> dict[str, range] | None:
    """Output rows of each block of a fused module, in order; None for a module that is not fused.

    `config` is a model's config as a dictionary; blocks differ in size where heads share keys and
    values.
    """
    layout = _layouts(config).get(module)
    if layout is None:
        return None
    blocks, begin = {}, 0
    for name, rows in layout(config).items():
        blocks[name] = range(begin, begin + rows)
        begin += rows
    return blocks


def fused_modules(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The fused modules of this kind of model, each with the names of its blocks."""
    return {module: list(layout(config)) for module, layout in _layouts(config).items()}


def slices_problem(
    slices: TargetSlices, config: Mapping[str, Any], adapted: Sequence[str] | None, model: str
) -> str | None:
    """Why the model cannot be trained by these slices, in the words after the field's name; or None.

    `adapted` are the full names of the modules that get an adapter, None where they are not known;
    `model` is what a person calls it.
    """
    fused = fused_modules(config)
    known = "; ".join(f"`{m}` ({', '.join(blocks)})" for m, blocks in fused.items())
    for module, names in slices.items():
        if module not in fused:
            other = f"Fused here: {known}." if fused else f"No module of {model} is known to be."
            return (
                f"`{module}` is not a fused projection of {model}. {other} A part that has a module of "
                "its own is chosen by training.peft_config.target_modules."
            )
        unknown = [name for name in names if name not in fused[module]]
        if unknown:
            return (
                f"`{module}` of {model} has no block {', '.join(unknown)}; it has "
                f"{', '.join(fused[module])}, in this order."
            )
        if adapted is not None and not any(n.rsplit(".", 1)[-1] == module for n in adapted):
            return (
                f"`{module}` gets no adapter: training.peft_config.target_modules does not name it, or "
                "another field takes it out. Add it there, or remove it here."
            )
    return None


def _layouts(
    config: Mapping[str, Any],
) -> dict[str, Callable[[Mapping[str, Any]], dict[str, int]]]:
    return _LAYOUTS.get(str(config.get("model_type")), {})


def _grouped_heads(config: Mapping[str, Any]) -> dict[str, int]:
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    shared = int(config.get("num_key_value_heads") or heads)
    return {"q": heads * width, "k": shared * width, "v": shared * width}


def _gate_and_up(config: Mapping[str, Any]) -> dict[str, int]:
    inner = int(config["intermediate_size"])
    return {"gate": inner, "up": inner}


def _thirds(field: str) -> Callable[[Mapping[str, Any]], dict[str, int]]:
    return lambda config: dict.fromkeys(("q", "k", "v"), int(config[field]))


_LAYOUTS: dict[str, dict[str, Callable[[Mapping[str, Any]], dict[str, int]]]] = {
    "phi3": {"qkv_proj": _grouped_heads, "gate_up_proj": _gate_and_up},
    "glm": {"gate_up_proj": _gate_and_up},
    "glm4": {"gate_up_proj": _gate_and_up},
    "gpt2": {"c_attn": _thirds("n_embd")},
    "mpt": {"Wqkv": _thirds("d_model")},
}
