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
from tasks.training import loading, ranks
from tasks.training.batches import micro_batches_together, total_steps
from tasks.training.collators import Collator, PackCollator
from tasks.training.field_coverage import unmatched_entries
from tasks.training.isolation import require_isolation
from tasks.training.job import TrainingJob
from tasks.training.matching import adapted_modules
from tasks.training.methods.preference import REJECTED, Preference, lengths_of, preference_of
from tasks.training.packs import EXAMPLE_LENGTHS, Packs, packed_table
from tasks.training.peft_needs import (
    PeftNeeds,
    before_the_adapter,
    completed,
    refuse_what_this_machine_lacks,
)
from tasks.training.sharing import Share
from tasks.training.targets import ALL_LINEAR, all_linear_names, check_targets
from tasks.training.trainer import AdapterTrainer, MethodTrainer

_DEFAULT_SAVES = 10
# What PEFT, TRL and transformers raise for settings that do not fit, and for libraries that are missing.
REFUSALS = (ValueError, TypeError, NotImplementedError, ImportError)
_LARGEST_SAVE_INTERVAL = 100


def read_rows(path: Path) -> Dataset:
    """Rows of `input_ids` and `labels`, held in memory; `seq_lengths` where they are packed, and
    `prompt_length` and `rejected_ids` where they are pairs.
    """
    names = set(pq.read_schema(path).names)
    columns = {"input_ids", "labels", EXAMPLE_LENGTHS} & names
    if REJECTED in names:
        columns |= {"prompt_length", REJECTED}
    return Dataset(InMemoryTable(pq.read_table(path, columns=sorted(columns))))


def in_packs(rows: Dataset, packs: Packs) -> Dataset:
    """Packed rows, with the column `seq_lengths`."""
    return Dataset(InMemoryTable(packed_table(rows.data.table, packs)))


def build_trainer(
    job: TrainingJob,
    rows: Dataset,
    precision: loading.Precision,
    callbacks: Sequence[TrainerCallback] = (),
) -> MethodTrainer:
    """Base, adapter, rows (each alone, or packed) and configuration, ready to train.

    The adapter's first weights come from the job's seed: TRL sets it right before PEFT draws them.

    Raises: UserError for settings that do not fit the base or that the libraries refuse, and for
    packed rows on a base that cannot keep them apart.
    """
    packed = EXAMPLE_LENGTHS in rows.column_names
    preference = preference_of(job.method)
    trained = rows if preference is None else preference.rows(rows.data.table)
    lengths = [len(row) for row in rows["input_ids"]] if preference is None else lengths_of(trained)
    share = Share(*batch_of(job.training_config), job.processes, ranks.rank())
    share.refuse_idle()
    together = 1
    # A preference's loss is a mean over pairs that are compared within their micro-batch.
    if preference is None and not torch.cuda.is_available():
        together = micro_batches_together(
            share.own_batch, share.own_accumulation, sum(lengths) / len(lengths)
        )
    arguments, strategy, limit = build_arguments(
        job.training_config,
        job.checkpoints,
        job.seed,
        precision,
        steps_of(job.training_config, len(trained)),
        share,
        together,
        preference,
    )
    ranks.refuse_lost_processes(job.processes, arguments.world_size)
    peft_config = build_peft_config(job.peft_config, steps_of(job.training_config, len(trained)))
    refuse_what_this_machine_lacks(peft_config)
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
    collator: Any = PackCollator(*layout, flat=flat) if packed else Collator(*layout)
    kind: type[MethodTrainer] = AdapterTrainer
    if preference is not None:
        collator, kind = preference.collator(*layout), preference.trainer
    evaluation = None
    if arguments.eval_strategy != "no":
        evaluation = read_rows(job.tokens / "test.parquet")
        if preference is not None:
            evaluation = preference.rows(evaluation.data.table)
    try:
        before_the_adapter(model, peft_config, rows, job.seed)
        trainer = kind(
            # Packs are of one length already.
            strategy="random" if packed and strategy == "group_by_length" else strategy,
            checkpoint_limit=limit,
            lengths=lengths,
            inputs=job.inputs,
            share=share,
            together=together,
            inference_attention=attention,
            loraplus_lr_ratio=job.loraplus_lr_ratio,
            untrained_base=job.guards.untrained_base,
            model=model,
            args=arguments,
            train_dataset=trained,
            eval_dataset=evaluation,
            data_collator=collator,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=list(callbacks),
        )
        trainer.needs = PeftNeeds(
            trainer,
            rows=rows,
            seed=job.seed,
            slices=job.target_slices,
            base_name=job.base_name,
        )
    except REFUSALS as error:
        raise refused(error) from error
    # It prints dictionaries among the events.
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ranks.TellSpread(trainer))
    if isinstance(collator, PackCollator):
        autocast = trainer.accelerator.autocast()
        require_isolation(trainer.model, collator, peft_config, autocast)
    trainer.use_kernels()
    ranks.own_random_state(job.seed)
    return trainer


def refused(error: Exception) -> UserError:
    """What a library says against the recipe, as the user's mistake that it is."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, ImportError):
        return UserError(
            f"Section `training` asks for a library that is not installed: {error}. Install it, or "
            "take the setting out (an optimizer, a kernel, a quantization)."
        )
    return UserError(f"PEFT or TRL refuses section `training`: {error}")


@contextmanager
def training_as_configured(trainer: MethodTrainer) -> Iterator[None]:
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
    """Check all names of modules and layers against the model, and write `all-linear` out in short names.

    Raises: UserError for names that the model does not have.
    """
    targets = getattr(peft_config, "target_modules", None)
    linear, head = loading.linear_modules(model), loading.head_name(model)
    modules = loading.adaptable_modules(model, peft_config.peft_type.value, targets)
    check_targets(targets, modules, name, head)
    if targets == ALL_LINEAR and (names := all_linear_names(linear, head)):
        peft_config.target_modules = set(names)
    if targets is None:
        return
    values = {**peft_config.to_dict(), "target_modules": targets}
    named = adapted_modules({"target_modules": targets}, modules, head)
    adapted = adapted_modules(values, modules, head)
    everything = [module for module, _ in model.named_modules()]
    for field, problem in unmatched_entries(values, named, adapted, everything):
        raise UserError(f"training.peft_config.{field}: {problem}")


def steps_of(training_config: dict[str, Any], rows: int) -> int:
    """Optimizer steps, on however many devices; the fallbacks are transformers' own defaults."""
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
