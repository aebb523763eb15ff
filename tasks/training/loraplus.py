"""LoRA+ (https://arxiv.org/abs/2402.12354): `lora_B` learns faster than `lora_A`."""

from typing import Any


def speed_up_lora_b(optimizer: Any, model: Any, ratio: float) -> None:
    """Split every parameter group in two; the new ones, at the end, hold `lora_B` at `ratio` times the rate.

    To be called before the scheduler is made and before the first step: rates that are there now are
    what a scheduler scales. The first group's stays what the logs call the learning rate.
    """
    ups = {id(p) for name, p in model.named_parameters() if ".lora_B." in name}
    for group in list(optimizer.param_groups):
        faster = [p for p in group["params"] if id(p) in ups]
        if faster:
            group["params"] = [p for p in group["params"] if id(p) not in ups]
            optimizer.param_groups.append({**group, "params": faster, "lr": group["lr"] * ratio})
