"""The recipe's training and adapter sections as the libraries' own configuration objects."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_config
from trl import SFTConfig

from tasks.errors import UserError
from tasks.training import loading
from tasks.training.batches import total_steps
from tasks.training.methods.preference import Preference
from tasks.training.peft_needs import completed
from tasks.training.sharing import Share
from tasks.training.smaller import rows_at_once

_DEFAULT_SAVES = 10
_LARGEST_SAVE_INTERVAL = 100


def steps_of(training_config: dict[str, Any], rows: int) -> int:
    """Optimizer steps, on however many devices; the fallbacks are transformers' own defaults.

    Raises: UserError when `dataloader_drop_last` would leave no row.
    """
    batch, accumulation = rows_at_once(training_config)
    drop_last = bool(training_config.get("dataloader_drop_last"))
    if drop_last and rows < batch:
        raise UserError(
            f"training.training_config.dataloader_drop_last drops what does not fill a batch of {batch}, and "
            f"there are {rows} training rows: none would be left. Lower per_device_train_batch_size, or "
            "take dataloader_drop_last out."
        )
    return total_steps(
        rows,
        batch,
        accumulation,
        float(training_config.get("num_train_epochs", 3.0)),
        int(training_config.get("max_steps", -1)),
        drop_last=drop_last,
    )


def build_arguments(
    training_config: dict[str, Any],
    folder: Path,
    seed: int,
    precision: loading.Precision,
    steps: int,
    share: Share,
    together: int = 1,
    preference: Preference | None = None,
) -> tuple[Any, str, int | None]:
    """TRL's configuration with what the pipeline owns; the row order; how many checkpoints to keep.

    `together` micro-batches are computed as one: the same rows in an optimizer step, the same loss.
    """
    values = dict(training_config)
    strategy = values.pop("train_sampling_strategy", None) or "group_by_length"
    limit = values.pop("save_total_limit", 2)
    every = max(1, min(_LARGEST_SAVE_INTERVAL, -(-steps // _DEFAULT_SAVES)))
    defaults = {
        "save_strategy": "steps",
        "save_steps": every,
        "logging_steps": 5,
        "activation_checkpointing": False,
    }
    if "gradient_checkpointing" in values:
        defaults.pop("activation_checkpointing")
    cuda = torch.cuda.is_available()
    owned = {
        "output_dir": str(folder),
        "per_device_train_batch_size": share.own_batch * together,
        "gradient_accumulation_steps": share.own_accumulation // together,
        # The loss is a mean over the tokens of all processes.
        "average_tokens_across_devices": True,
        "seed": seed,
        "report_to": "none",
        "disable_tqdm": True,
        "push_to_hub": False,
        "use_cpu": not cuda,
        "bf16": precision.autocast == "bf16",
        "fp16": precision.autocast == "fp16",
        # A loss that is not a number must be seen, not replaced by an average.
        "logging_nan_inf_filter": False,
        "logging_first_step": True,
        "prediction_loss_only": True,
        "dataloader_pin_memory": cuda,
        "train_sampling_strategy": "random" if strategy == "group_by_length" else strategy,
        # We rotate checkpoints ourselves: the library does it before the new one is complete.
        "save_total_limit": None,
    }
    configuration: Any = SFTConfig
    if preference is None:
        owned |= {
            "max_length": None,
            "packing": False,
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }
    else:
        configuration = preference.configuration
        owned |= {"remove_unused_columns": False, **preference.owned}
    try:
        return configuration(**(defaults | values | owned)), strategy, limit
    except ValueError as error:
        raise UserError(f"TRL refuses training.training_config: {error}") from error


def build_peft_config(values: dict[str, Any], steps: int) -> PeftConfig:
    """The PEFT class that `peft_type` names, with the recipe's fields; `steps` are the optimizer's."""
    try:
        return get_peft_config(completed(dict(values), steps))
    except ValueError as error:
        raise UserError(f"PEFT refuses training.peft_config: {error}") from error
