"""The values that a recipe need not write: what it says is laid over them."""

from typing import Any

from tasks.methods import Method
from tasks.training import fields

EFFECTIVE_BATCH = 16
"""Rows per optimizer step and device. LoRA loses more than full fine-tuning does when this is large."""

RATE_WIDTH = 3072
"""Hidden size of Phi-3-mini: the learning rates here are for a base as wide."""
MOST_TIMES_RATE = 16
"""Narrower bases than the narrowest that was measured (256) get no more."""

OTHER_TARGETS = ("ADAPTION_PROMPT", "IA3", "LN_TUNING", "OSF", "SHADOW", "TRAINABLE_TOKENS")
"""PEFT types whose `target_modules` are not, or not only, linear layers to be adapted."""


def resolve_peft(given: dict[str, Any]) -> dict[str, Any]:
    """The whole `peft_config`: the recipe's fields over the defaults. Keys sorted."""
    peft_type = given.get("peft_type") or "LORA"
    values: dict[str, Any] = {"peft_type": peft_type, "task_type": "CAUSAL_LM"}
    if peft_type == "LORA":
        rank = given.get("r", 32)
        values |= {
            # 32 holds what a few ten thousand conversations teach; a smaller set does with 16.
            "r": rank,
            # The update is scaled by alpha / r. Keeping that at 2, as the Phi-3 samples do, lets the
            # learning rate stay while the rank moves. rsLoRA scales by alpha / sqrt(r) instead.
            "lora_alpha": rank if given.get("use_rslora") else 2 * rank,
            # Dropout slows learning and forbids fused kernels; few passes over the data overfit little.
            "lora_dropout": 0.0,
            "bias": "none",
        }
    if "target_modules" in fields.peft_fields(peft_type) and peft_type not in OTHER_TARGETS:
        # Attention alone loses to all linear layers even at an equal number of parameters.
        values["target_modules"] = "all-linear"
    if "num_virtual_tokens" in fields.peft_fields(peft_type):
        # PEFT has no default. 20 is where prompt tuning's own paper stops gaining.
        values["num_virtual_tokens"] = 20
    return dict(sorted((values | given).items()))


OF_METHOD: dict[Method, dict[str, Any]] = {
    # A text read twice begins to be learned by heart.
    "pretraining": {"num_train_epochs": 1},
    # Ten times what TRL takes for full fine-tuning; more soon leaves the base's language behind.
    "dpo": {"learning_rate": 1e-5, "num_train_epochs": 1},
    "kto": {"learning_rate": 1e-5, "num_train_epochs": 1},
    # It learns the answers too, and has no reference that holds it back.
    "orpo": {"learning_rate": 5e-5, "num_train_epochs": 1},
}
"""Where a method's defaults differ from those of supervised fine-tuning."""


def resolve_training(
    given: dict[str, Any], method: Method = "sft", width: int | None = None
) -> dict[str, Any]:
    """The whole `training_config`: the recipe's fields over the defaults. Keys sorted.

    `width`: the base's hidden size, where the default learning rate is to follow it.
    """
    rows = given.get("per_device_train_batch_size", 4)
    values: dict[str, Any] = {
        # About ten times what full fine-tuning takes; the samples' 5e-6 barely moves an adapter.
        "learning_rate": 2e-4,
        "num_train_epochs": 2,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": max(1, EFFECTIVE_BATCH // rows),
        "per_device_eval_batch_size": 8,
        # A share of all steps: the optimizer's averages settle, nothing more is gained.
        "warmup_steps": 0.03,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        # Recomputing activations costs a third of the speed; turn it on where memory is short.
        "activation_checkpointing": False,
        "logging_steps": 5,
        "save_strategy": "steps",
        "save_total_limit": 2,
    }
    if "lr_scheduler_type" not in given:
        # Ends at a tenth of the peak: the last steps still learn.
        values |= {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        }
    values |= OF_METHOD.get(method, {})
    if width is not None:
        # Adam moves every weight by the same amount, and an output sums `width` of them: the rate that
        # fits goes as 1 / width (https://arxiv.org/abs/2203.03466). `benchmarks/quality.py` measures it.
        values["learning_rate"] *= min(RATE_WIDTH / width, MOST_TIMES_RATE)
    return dict(sorted((values | given).items()))
