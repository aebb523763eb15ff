"""Put base, adapter, rows and configuration together into a trainer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from peft import PeftConfig, get_peft_config
from transformers import AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils.generic import is_flash_attention_requested
from trl import SFTConfig

from tasks.errors import UserError
from tasks.training import loading
from tasks.training.batches import micro_batches_together, total_steps
from tasks.training.collators import Collator, PackCollator
from tasks.training.isolation import require_isolation
from tasks.training.job import TrainingJob
from tasks.training.packs import EXAMPLE_LENGTHS, Packs, packed_table
from tasks.training.targets import ALL_LINEAR, all_linear_names, check_targets
from tasks.training.trainer import AdapterTrainer

_DEFAULT_SAVES = 10
# What PEFT, TRL and transformers raise for settings that do not fit, and for libraries that are missing.
REFUSALS = (ValueError, TypeError, NotImplementedError, ImportError)
_LARGEST_SAVE_INTERVAL = 100


def read_rows(path: Path) -> Dataset:
    """Rows of `input_ids` and `labels`, and `seq_lengths` where they are packed, held in memory."""
    columns = {"input_ids", "labels", EXAMPLE_LENGTHS} & set(pq.read_schema(path).names)
    return Dataset(InMemoryTable(pq.read_table(path, columns=sorted(columns))))


def in_packs(rows: Dataset, packs: Packs) -> Dataset:
    """Packed rows, with the column `seq_lengths`."""
    return Dataset(InMemoryTable(packed_table(rows.data.table, packs)))


def build_trainer(
    job: TrainingJob,
    rows: Dataset,
    precision: loading.Precision,
    callbacks: Sequence[TrainerCallback] = (),
) -> AdapterTrainer:
    """Base, adapter, rows (each alone, or packed) and configuration, ready to train.

    The adapter's first weights come from the job's seed: TRL sets it right before PEFT draws them.

    Raises: UserError for settings that do not fit the base or that the libraries refuse, and for
    packed rows on a base that cannot keep them apart.
    """
    packed = EXAMPLE_LENGTHS in rows.column_names
    lengths = [len(row) for row in rows["input_ids"]]
    together = 1
    if not torch.cuda.is_available():
        together = micro_batches_together(
            *batch_of(job.training_config), sum(lengths) / len(lengths)
        )
    arguments, strategy, limit = build_arguments(
        job.training_config,
        job.checkpoints,
        job.seed,
        precision,
        steps_of(job.training_config, len(rows)),
        together,
    )
    peft_config = build_peft_config(job.peft_config)
    model = loading.load_base(
        job.base, precision, job.quantization, checkpointing=arguments.gradient_checkpointing
    )
    attention = model.config._attn_implementation
    if loading.plain_attention_is_faster(precision, max(lengths)):
        model.set_attn_implementation("eager")
    resolve_targets(peft_config, model, job.base_name)
    tokenizer = AutoTokenizer.from_pretrained(job.base, local_files_only=True)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # Tensor cores want multiples of eight; on a CPU padding is only work.
    layout = (pad or 0, 8 if torch.cuda.is_available() else 1)
    flat = is_flash_attention_requested(model.config)
    collator = PackCollator(*layout, flat=flat) if packed else Collator(*layout)
    evaluation = None
    if arguments.eval_strategy != "no":
        evaluation = read_rows(job.tokens / "test.parquet")
    try:
        trainer = AdapterTrainer(
            # Packs are of one length already.
            strategy="random" if packed and strategy == "group_by_length" else strategy,
            checkpoint_limit=limit,
            lengths=lengths,
            rows_together=arguments.per_device_train_batch_size // together,
            inference_attention=attention,
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=evaluation,
            data_collator=collator,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=list(callbacks),
        )
    except REFUSALS as error:
        raise refused(error) from error
    # It prints dictionaries among the events.
    trainer.remove_callback(PrinterCallback)
    if isinstance(collator, PackCollator):
        autocast = trainer.accelerator.autocast()
        require_isolation(trainer.model, collator, peft_config, autocast)
    trainer.use_kernels()
    return trainer


def refused(error: Exception) -> UserError:
    """What a library says against the recipe, as the user's mistake that it is."""
    if isinstance(error, ImportError):
        return UserError(
            f"Section `training` asks for a library that is not installed: {error}. Install it, or "
            "take the setting out (an optimizer, a kernel, a quantization)."
        )
    return UserError(f"PEFT or TRL refuses section `training`: {error}")


@contextmanager
def training_as_configured(trainer: AdapterTrainer) -> Iterator[None]:
    """Train inside the block: no cast that autocast undoes, and a missing library told in words.

    Under autocast PEFT's cast of every input to float32 is undone at once: only memory and time.
    Not every kind of adapter casts (IA3 does not), so PEFT's own switch cannot be used.

    Raises: UserError when an optimizer or a kernel needs a library that is not installed.
    """
    mixed = trainer.args.bf16 or trainer.args.fp16
    casting = [
        module
        for module in trainer.model.modules()
        if mixed and getattr(module, "cast_input_dtype_enabled", False) is True
    ]
    for module in casting:
        module.cast_input_dtype_enabled = False
    try:
        yield
    except ImportError as error:
        raise refused(error) from error
    finally:
        for module in casting:
            module.cast_input_dtype_enabled = True


def resolve_targets(peft_config: PeftConfig, model: Any, name: str) -> None:
    """Check the target modules against the model, and write `all-linear` out in short names.

    Raises: UserError for targets that the model does not have.
    """
    targets = getattr(peft_config, "target_modules", None)
    linear, head = loading.linear_modules(model), loading.head_name(model)
    check_targets(targets, linear, name, head)
    if targets == ALL_LINEAR and (names := all_linear_names(linear, head)):
        peft_config.target_modules = set(names)


def steps_of(training_config: dict[str, Any], rows: int) -> int:
    """Optimizer steps on one device; the fallbacks are transformers' own defaults."""
    return total_steps(
        rows,
        *batch_of(training_config),
        float(training_config.get("num_train_epochs", 3.0)),
        int(training_config.get("max_steps", -1)),
    )


def batch_of(training_config: dict[str, Any]) -> tuple[int, int]:
    """Rows of a micro-batch, and micro-batches of an optimizer step."""
    rows = int(training_config.get("per_device_train_batch_size", 8))
    return rows, int(training_config.get("gradient_accumulation_steps", 1))


def build_arguments(
    training_config: dict[str, Any],
    folder: Path,
    seed: int,
    precision: loading.Precision,
    steps: int,
    together: int = 1,
) -> tuple[SFTConfig, str, int | None]:
    """TRL's configuration with what the pipeline owns; the row order; how many checkpoints to keep.

    `together` micro-batches are computed as one: the same rows in an optimizer step, the same loss.
    """
    values = dict(training_config)
    rows, accumulation = batch_of(values)
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
        "per_device_train_batch_size": rows * together,
        "gradient_accumulation_steps": accumulation // together,
        "seed": seed,
        "max_length": None,
        "packing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
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
    try:
        return SFTConfig(**(defaults | values | owned)), strategy, limit
    except ValueError as error:
        raise UserError(f"TRL refuses training.training_config: {error}") from error


def build_peft_config(values: dict[str, Any]) -> PeftConfig:
    """The PEFT class that `peft_type` names, with the recipe's fields."""
    try:
        return get_peft_config(dict(values))
    except ValueError as error:
        raise UserError(f"PEFT refuses training.peft_config: {error}") from error
