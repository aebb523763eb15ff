"""What a training method cannot do, known from the recipe alone."""

from collections.abc import Mapping
from typing import Any

from tasks.methods import PREFERENCE_METHODS, Method
from tasks.training.lora_starts import FROM_THE_BASE

_WITH_A_REFERENCE: tuple[Method, ...] = ("dpo", "kto")
"""Methods that measure from the base, which is the model with its adapter switched off."""
_OF_A_WHOLE_BATCH = {"aot", "aot_unpaired", "sft"}
"""TRL's losses for DPO that sort a micro-batch's rows, or take a mean over its tokens."""


def method_mistakes(method: Method, training_config: dict[str, Any]) -> list[tuple[str, str]]:
    """(field, what is wrong) for fields that the method forbids."""
    wrong = []
    batch = training_config.get("per_device_train_batch_size")
    if isinstance(batch, int) and 0 < batch < smallest_batch(method):
        wrong.append(
            (
                "per_device_train_batch_size",
                "KTO compares each answer with those of the batch's other prompts: write 2 or more",
            )
        )
    if method in _WITH_A_REFERENCE and training_config.get("neftune_noise_alpha"):
        wrong.append(
            (
                "neftune_noise_alpha",
                f"{method.upper()} measures from the base, whose answers its noise would change as well: "
                "leave it out, or train by `method: sft` or `orpo`",
            )
        )
    return wrong


def reference_mistakes(method: Method, peft_config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(field, what is wrong) for adapters that leave something else than the base when switched off."""
    if method not in _WITH_A_REFERENCE:
        return []
    reference = f"and `method: {method}` measures from the base with the adapter switched off"
    other = "take `method: orpo`, which needs no reference"
    wrong = []
    start = peft_config.get("init_lora_weights", True)
    if isinstance(start, str) and start.startswith((*FROM_THE_BASE, "loftq")):
        text = f"`{start}` changes the base's weights, {reference}"
        wrong.append(("init_lora_weights", f"{text}. Write `true`, `eva` or `mica`, or {other}"))
    if peft_config.get("kasa_config") is not None:
        text = f"KaSA cuts the base's smallest directions off, {reference}"
        wrong.append(("kasa_config", f"{text}. Leave it out, or {other}"))
    if (peft_config.get("bias") or "none") != "none":
        text = f"the base's own biases would be trained, {reference}, but not the biases"
        wrong.append(("bias", f"{text}. Write `none`, or {other}"))
    return wrong


def rows_weighed_together(method: Method, training_config: Mapping[str, Any]) -> str:
    """Why a step's loss depends on which rows share a micro-batch; empty where each counts for itself."""
    asked = training_config.get("loss_type")
    if method == "kto" and asked in (None, "kto"):
        return (
            "KTO estimates from a micro-batch's own rows how far the model has moved from the base"
        )
    if method == "dpo":
        named = {asked} if isinstance(asked, str) else set(asked or ())
        if together := sorted(named & _OF_A_WHOLE_BATCH):
            return f"DPO's loss `{together[0]}` is one of a micro-batch's rows together"
    return ""


def smallest_batch(method: Method) -> int:
    """Rows that the method needs at once, on a process."""
    return 2 if method == "kto" else 1


def needs_one_process(method: Method) -> bool:
    """Whether the method's batches cannot be shared among processes."""
    return method in PREFERENCE_METHODS
