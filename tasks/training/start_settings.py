"""The recipe's fields about what a training starts from, and what does not go with them."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from tasks.methods import Method
from tasks.settings import Settings

FROM_BASE = "base"
INIT_FROM = re.compile(r"base|champion|models:/[^/@]+(/[0-9]+|@[^/@]+)")
_ONLY_DRAWN = ("gaussian", "orthogonal")
"""Words for `init_lora_weights` that neither change the base nor look at rows: a version takes their place."""
_PROMPT_TYPES = (
    "PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "ADAPTION_PROMPT",
    "CARTRIDGE",
)


class Replay(Settings):
    """Old rows among the new ones, so that a training that goes on forgets less."""

    share: float = Field(default=0, ge=0, le=0.9)
    """Share of the training rows that come from the dataset of the version that `init_from` names and are
    not among today's. More remembers more and learns the new rows more slowly. Rows that were taken out
    of the sources on purpose come back with it."""


def start_problem(
    init_from: str, replay: Replay, peft_config: Mapping[str, Any], method: Method
) -> str | None:
    """Why a training with these settings cannot start from a version; or None."""
    if not INIT_FROM.fullmatch(init_from):
        return (
            f"`init_from: {init_from}` is neither `base`, nor `champion`, nor a version "
            "(`models:/NAME/3`, `models:/NAME@ALIAS`)"
        )
    if init_from == FROM_BASE:
        if replay.share:
            return (
                "`replay` takes rows that an earlier version was trained on, and `init_from` is `base`. "
                "Name a version there, or remove `replay`"
            )
        return None
    peft_type = str(peft_config.get("peft_type") or "LORA")
    if peft_type in _PROMPT_TYPES:
        return (
            f"`init_from: {init_from}` goes on with an adapter inside the base's layers, and {peft_type} "
            "saves what its encoder made, not the encoder. Write `init_from: base`"
        )
    if peft_type == "ADALORA":
        return (
            f"`init_from: {init_from}`: AdaLoRA takes ranks away on the schedule of one training, and a "
            "second one would begin with those that are left. Write `init_from: base`, or LORA"
        )
    start = peft_config.get("init_lora_weights", True)
    if isinstance(start, str) and start not in _ONLY_DRAWN:
        return (
            f"`peft_config.init_lora_weights: {start}` says how an adapter begins, and "
            f"`init_from: {init_from}` begins with another. Write `init_lora_weights: true` (a version "
            "that began with pissa, olora, corda or lora_ga is a plain LoRA of twice the rank), or "
            "`init_from: base`"
        )
    if method in ("dpo", "kto"):
        return (
            f"`method: {method}` measures from the base with the adapter switched off and would pull an "
            "adapter that is ahead of it back. Write `init_from: base`, take `orpo`, or merge the "
            "version into a base of its own first"
        )
    return None
