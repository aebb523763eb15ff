"""What cannot be trained with a sharded model, known from the recipe alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.training.lora_starts import DRAWN
from tasks.training.spread import Sharding


def sharding_problem(
    sharding: Sharding,
    *,
    processes: int,
    quantization: str,
    peft_config: Mapping[str, Any],
    slices: Mapping[str, Sequence[str]],
    init_from: str,
) -> str | None:
    """Why the rest of the section does not go with `sharding`; or None."""
    where = f"`sharding: {sharding}`"
    if processes == 1:
        return f"{where} spreads a model over processes, and there is one. Raise `processes`"
    if quantization != "none":
        return (
            f"{where} cuts tensors that `quantization: {quantization}` has packed. Keep one of the two: a "
            "base in 4 bits mostly fits one GPU"
        )
    peft_type = peft_config.get("peft_type") or "LORA"
    if peft_type != "LORA":
        return f"{where} is made for LoRA's matrices, and peft_type is {peft_type}. Keep one of the two"
    start = peft_config.get("init_lora_weights", True)
    if start not in DRAWN:
        return f"{where} keeps no whole base to begin from, as `init_lora_weights: {start}` does. Take `true`"
    if slices:
        return f"{where} cuts the rows that `target_slices` tells apart. Keep one of the two"
    if init_from != "base":
        return f"{where} does not go on with a version's adapter. Take `init_from: base`"
    return None
