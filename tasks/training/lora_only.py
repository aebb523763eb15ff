"""Settings that only some LoRA adapters can have, and in which ways others would break them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.training.lora_starts import AT_ZERO


def lora_only_problem(
    peft_config: Mapping[str, Any],
    slices: Mapping[str, Sequence[str]],
    loraplus_lr_ratio: float | None,
) -> str | None:
    """Why `target_slices` or `loraplus_lr_ratio` do not go with this `peft_config`; or None."""
    peft_type = peft_config.get("peft_type") or "LORA"
    if loraplus_lr_ratio is not None and peft_type != "LORA":
        return (
            f"`loraplus_lr_ratio` is of LoRA's two matrices, and peft_type is {peft_type}. "
            "Remove one of the two"
        )
    if not slices:
        return None
    if peft_type != "LORA":
        return (
            f"`target_slices` keeps rows of LoRA's B at zero, and peft_type is {peft_type}. "
            "Take LORA, or remove `target_slices`"
        )
    for module, blocks in slices.items():
        if not blocks:
            return (
                f"`target_slices.{module}` names no block: nothing of it would be trained. Leave the "
                "module out of `peft_config.target_modules` instead"
            )
    for field, value, why in _spreads(peft_config):
        return (
            f"`target_slices` keeps the other rows exactly as the base has them; with "
            f"`peft_config.{field}: {value}` {why}. Remove one of the two"
        )
    return None


def cached_starts(peft_config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(field, what is wrong) for files that PEFT would keep a decomposition in, and read as pickles."""
    wrong = []
    for field in ("corda_config", "lora_ga_config"):
        inner = peft_config.get(field)
        for name in ("cache_file", "covariance_file"):
            if isinstance(inner, Mapping) and inner.get(name) is not None:
                text = f"`{name}` is read as a pickle, which may run any code. Leave it out"
                wrong.append((field, f"{text}: the rows are looked at anew"))
    return wrong


def _spreads(peft_config: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    start = peft_config.get("init_lora_weights", True)
    if start not in AT_ZERO:
        yield "init_lora_weights", start, "every row of B starts with numbers"
    if peft_config.get("use_dora"):
        yield "use_dora", "true", "each row has a magnitude that is trained and rounded"
    if peft_config.get("lora_bias"):
        yield "lora_bias", "true", "each row has a bias that is trained"
    if (peft_config.get("bias") or "none") != "none":
        yield "bias", peft_config["bias"], "each row's bias is trained"
    for field in (
        "use_qalora", "use_bdlora", "velora_config", "monteclora_config", "kasa_config",
        "alora_invocation_tokens",
    ):  # fmt: skip
        if peft_config.get(field):
            yield field, "...", "the adapter is more than B A"
