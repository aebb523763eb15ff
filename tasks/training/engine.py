"""Put base, adapter, rows and configuration together into a trainer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from peft import PeftConfig
from transformers import AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils.generic import is_flash_attention_requested

from tasks.errors import UserError
from tasks.training import loading, ranks
from tasks.training.arguments import build_arguments, build_peft_config, steps_of
from tasks.training.attention_choice import VARLEN, attention_to_train_with
from tasks.training.batches import keeps_batches, micro_batches_together
from tasks.training.collators import Collator, PackCollator
from tasks.training.field_coverage import unmatched_entries
from tasks.training.isolation import require_isolation
from tasks.training.job import TrainingJob
from tasks.training.kernels import varlen
from tasks.training.made_with import made_with
from tasks.training.matching import adapted_modules
from tasks.training.method_trainer import MethodTrainer
from tasks.training.methods.preference import DESIRABLE, REJECTED, lengths_of, preference_of
from tasks.training.packs import EXAMPLE_LENGTHS, Packs, packed_table
from tasks.training.peft_needs import (
    PeftNeeds,
    before_the_adapter,
    refuse_what_this_machine_lacks,
)
from tasks.training.sharing import Share
from tasks.training.smaller import rows_at_once
from tasks.training.targets import ALL_LINEAR, all_linear_names, check_targets
from tasks.training.trainer import AdapterTrainer
from tasks.training.warm_start import load_start, prove_start

# What PEFT, TRL and transformers raise for settings that do not fit, and for libraries that are missing.
REFUSALS = (ValueError, TypeError, NotImplementedError, ImportError)


def read_rows(path: Path) -> Dataset:
    """Rows of `input_ids` and `labels`, held in memory; `seq_lengths` where they are packed, and
    `prompt_length`, `rejected_ids` and `desirable` where answers are compared or judged.
    """
    names = set(pq.read_schema(path).names)
    columns = {"input_ids", "labels", EXAMPLE_LENGTHS} & names
    if REJECTED in names:
        columns |= {"prompt_length", REJECTED, DESIRABLE} & names
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
    lengths = _tokens_of(rows) if preference is None else lengths_of(trained)
    share = Share(*rows_at_once(job.training_config), job.processes, ranks.rank())
    share.refuse_idle()
    together = 1
    # A preference's loss is a mean over pairs that are compared within their micro-batch.
    # Where memory made the batch smaller, nothing is put together again.
    apart = preference is not None or job.order_batch is not None
    if not apart and not torch.cuda.is_available() and not keeps_batches(job.training_config):
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
        job.base,
        precision,
        job.quantization,
        # From there each layer goes to the GPUs in parts: one of them might not hold all.
        on_cpu=job.sharding != "none",
    )
    attention = model.config._attn_implementation
    chosen, why = attention_to_train_with(
        job.attention, dtype=precision.name, packed=packed, gpu=torch.cuda.is_available()
    )
    if chosen == VARLEN:
        varlen.register()
    if chosen is not None:
        model.set_attn_implementation(chosen)
    elif loading.plain_attention_is_faster(precision, max(lengths)):
        model.set_attn_implementation("eager")
    resolve_targets(peft_config, model, job.base_name)
    tokenizer = AutoTokenizer.from_pretrained(job.base, local_files_only=True)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    layout = (pad or 0, loading.padding_multiple())
    flat = model.config._attn_implementation == VARLEN or is_flash_attention_requested(model.config)
    collator: Any = PackCollator(*layout, flat=flat) if packed else Collator(*layout)
    kind: type[MethodTrainer] = AdapterTrainer
    if preference is not None:
        collator, kind = preference.collator(*layout), preference.trainer
    evaluation = None
    if arguments.eval_strategy != "no":
        evaluation = read_rows(job.tokens / "test.parquet")
        if preference is not None:
            evaluation = preference.rows(evaluation.data.table)
    formats = loading.formats(model)
    try:
        before_the_adapter(model, peft_config, rows, job.seed)
        trainer = kind(
            # Packs are of one length already.
            strategy="random" if packed and strategy == "group_by_length" else strategy,
            checkpoint_limit=limit,
            lengths=lengths,
            inputs=job.inputs,
            made_with=made_with(precision),
            share=share,
            together=together,
            order_batch=job.order_batch or share.batch,
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
        loading.keep_formats(formats)
        if job.start is not None:
            # Before anything looks at the adapter: slices must find its rows as they will be trained.
            load_start(trainer.model, job.start)
        trainer.needs = PeftNeeds(
            trainer,
            rows=rows,
            seed=job.seed,
            slices=job.target_slices,
            base_name=job.base_name,
        )
    except REFUSALS as error:
        raise refused(error) from error
    if job.start is not None:
        # As the version was recorded: with the attention of inference, and without our kernels.
        quick = model.config._attn_implementation
        model.set_attn_implementation(attention)
        trainer.started_from = prove_start(
            trainer.model, job.start, dtype=precision.name, quantization=job.quantization
        )
        model.set_attn_implementation(quick)
    trainer.attention_said = why
    # It prints dictionaries among the events.
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ranks.TellSpread(trainer, job.sharding))
    if isinstance(collator, PackCollator):
        autocast = trainer.accelerator.autocast()
        require_isolation(trainer.model, collator, peft_config, autocast)
    if job.sharding == "none":
        # They read the head's weights past its module, which is where parts are put together.
        trainer.use_kernels()
    ranks.own_random_state(job.seed)
    return trainer


def _tokens_of(rows: Dataset) -> list[int]:
    lengths: list[int] = pc.list_value_length(rows.data.table["input_ids"]).to_pylist()
    return lengths


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
