"""The process that trains one adapter: `accelerate launch -m tasks.training.worker job.json`."""

import gc
import logging
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import transformers
from datasets import Dataset
from transformers import TrainerState

from tasks.errors import StageFailed
from tasks.files import file_sha256
from tasks.training import checkpoints, disk, loading, out_of_memory, ranks, saving, sharded
from tasks.training.budget import SPENT, BudgetWatch
from tasks.training.callbacks import SignOfLife, StopAtStep
from tasks.training.curve import write_history
from tasks.training.engine import build_trainer, in_packs, read_rows, training_as_configured
from tasks.training.inspect_worker import refuse_other_count
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.made_with import (
    other_versions,
    precision_to_go_on_with,
    refuse_other_precision,
    versions,
)
from tasks.training.method_trainer import MethodTrainer
from tasks.training.packs import read_packs
from tasks.training.preflight import Preflight
from tasks.training.stalls import StacksBeforeStall
from tasks.training.targets import coverage
from tasks.training.warm_start import FirstLoss, proof_in_words
from tasks.worker import emit, main, write_result

TERMINATED = 128 + signal.SIGTERM
_log = logging.getLogger(__name__)


def train(job: TrainingJob) -> None:
    """Train, save, prove that the saved adapter is the trained one, and only then answer."""
    stop = _stop_on_sigterm()
    sharded.refuse_without_gpu(job.sharding)
    ranks.take_own_device()
    transformers.utils.logging.disable_progress_bar()
    loading.use_all_cores()
    precision = precision_to_go_on_with(job.dtype, job.checkpoints, _note)
    _note(f"Using {precision.name} on {loading.device_name()}: {precision.reason}.")
    rows = read_rows(job.tokens / "train.parquet")
    packs = read_packs(job.tokens)
    batched = rows if packs is None else in_packs(rows, packs)
    before = saving.base_state(job.base)
    free = loading.free_memory_bytes()
    budget = _watch_budget(job)
    callbacks = [StopAtStep(stop), SignOfLife(), budget]
    if job.start is not None:
        callbacks.append(FirstLoss(job.start, _note))
    if job.stall_seconds is not None:
        callbacks.append(StacksBeforeStall(job.stall_seconds))
    with out_of_memory.explained(
        lambda: "while the base model was loaded", out_of_memory.smaller_base(free)
    ):
        trainer = build_trainer(job, batched, precision, callbacks)
    trainer.beside_checkpoints.append(budget.save)
    model = trainer.model
    for said in (trainer.attention_said, trainer.kernels_said):
        if said:
            _note(said)
    trainable, total = model.get_nb_trainable_parameters()
    trainable -= trainer.needs.untrained
    if trainable == 0:
        raise StageFailed(
            "The adapter has no trainable parameter. Check training.peft_config: target_modules, "
            "layers_to_transform and exclude_modules together leave nothing."
        )
    if (found := trainer.started_from) is not None:
        _note(proof_in_words(found))
    if ranks.is_first():
        refuse_other_count(trainable, job, len(batched))
    begun = saving.digests(model) if ranks.is_first() else {}
    adapted = coverage(getattr(model, "targeted_module_names", []))
    _note(f"Training {trainable:,} of {total:,} parameters, on {_modules(adapted)}.")
    fill = None
    if packs is not None:
        fill = packs.fill(sum(trainer.row_lengths))
        _note(_describe_packs(job.training_config, len(rows), len(batched), fill))
    disk.refuse_full(job.checkpoints, trainable, job.training_config.get("save_total_limit"))

    resumed = ranks.told_by_the_first(
        checkpoints.newest_complete(job.checkpoints) if ranks.is_first() else None
    )
    if resumed is None and job.guards.preflight:
        trainer.add_callback(Preflight(trainer, _note))
    advice = out_of_memory.advice(job, trainer, precision, free)
    if ranks.is_first():
        # Now, for a process that the kernel kills says nothing any more.
        emit("memory", advice=advice)
    if resumed is not None:
        checkpoints.refuse_other_inputs(resumed, job.inputs)
        refuse_other_precision(resumed, precision)
        if changed := other_versions(resumed):
            _note(changed)
        budget.take_up(resumed)
    started = time.monotonic()
    _run(trainer, resumed, stop, advice)
    budget.refuse_excess()
    seconds = time.monotonic() - started
    state = trainer.state
    if state.global_step == 0:
        raise StageFailed(
            f"Training made no optimizer step on {len(rows)} rows. "
            "Check num_train_epochs and max_steps in training.training_config."
        )
    # While all processes are here: each may hold a part.
    adapter = None if job.sharding == "none" else sharded.adapter_state(model)
    ranks.part()
    if not ranks.is_first():
        return

    if adapter is not None:
        model = sharded.on_a_whole_base(
            loading.load_base(job.base, precision, job.quantization, on_cpu=True),
            model.peft_config["default"],
            adapter,
        )
    saving.refuse_untrained(model)
    saving.refuse_unchanged(model, begun, None if job.start is None else job.start.uri)
    trainer.needs.check()
    tokenizer = trainer.processing_class
    # A piece of a text ends anywhere: only the tokenizer's own end says where generation does.
    ends = () if job.method == "pretraining" else _labels(rows)
    stops = saving.stop_token_ids(ends, job.base, tokenizer.eos_token_id)
    shutil.rmtree(job.output, ignore_errors=True)
    folder = job.output / "adapter"
    folder.mkdir(parents=True)
    if adapter is None:
        model = trainer.as_loaded()
    saving.save_adapter(
        model,
        folder,
        base=job.base,
        base_name=job.base_name,
        commit=job.base_commit,
        stops=stops,
        start=trainer.needs.start,
    )
    adapter_sha256 = file_sha256(folder / saving.WEIGHTS)
    write_history(state.log_history, job.output)
    prompts = saving.fixture_rows(_prompts(job.tokens))
    logits = saving.fixture_logits(model, prompts)
    saving.save_fixture(
        job.output, prompts, logits, dtype=precision.name, quantization=job.quantization
    )
    started_from = trainer.started_from
    peak, tokens = loading.peak_memory_bytes(), int(trainer._total_train_tokens)
    del trainer, model
    # Two bases at once might not fit where one did.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if saving.base_state(job.base) != before:
        raise StageFailed(
            f"The files of the base model in {job.base} changed while an adapter was trained on "
            "them: it fits neither the old nor the new base. Run the recipe again."
        )
    difference = saving.check_reload(
        loading.load_base(job.base, precision, job.quantization, on_cpu=job.sharding != "none"),
        folder,
        prompts,
        logits,
        tolerance=saving.tolerance(precision.name, job.quantization),
    )
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    write_result(
        job.result,
        TrainingResult(
            adapter_sha256=adapter_sha256,
            trainable_parameters=trainable,
            total_parameters=total,
            target_modules=adapted,
            dtype=precision.name,
            dtype_reason=precision.reason,
            device=loading.device_name(),
            steps=state.global_step,
            resumed_from_step=checkpoints.step_of(resumed) if resumed else None,
            epochs=float(state.epoch or 0.0),
            rows=len(rows),
            packs=None if packs is None else len(batched),
            fill=fill,
            first_loss=losses[0],
            final_loss=_mean_of_last_tenth(losses),
            tokens=tokens,
            seconds=seconds,
            tokens_per_second=tokens / max(seconds, 1e-9),
            peak_memory_bytes=peak,
            stop_token_ids=stops,
            reload_difference=difference,
            versions=versions(),
            start=started_from,
        ),
    )


def _run(
    trainer: MethodTrainer, resumed: Path | None, stop: threading.Event, on_lack_of_memory: str
) -> None:
    """The training loop, from the checkpoint if there is one; ends the process when asked to stop."""
    if stop.is_set():
        _end_interrupted(0 if resumed is None else checkpoints.step_of(resumed))
    if resumed is not None:
        _note(f"Going on from the checkpoint of step {checkpoints.step_of(resumed)}.")
        if ranks.is_first():
            emit("saved", step=checkpoints.step_of(resumed))
    trainer.start_clock()
    if resumed is not None and _was_last(resumed):
        # The trainer would make one step more before it notices.
        trainer._load_from_checkpoint(str(resumed))
        trainer.state = TrainerState.load_from_json(str(resumed / "trainer_state.json"))
        return
    with (
        out_of_memory.explained(lambda: _at_step(trainer.state), on_lack_of_memory),
        training_as_configured(trainer),
    ):
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if stop.is_set():
        _end_interrupted(trainer.state.global_step)


def _watch_budget(job: TrainingJob) -> BudgetWatch:
    cuda = torch.cuda.is_available()
    if job.budget.gpu_hours is not None and not cuda:
        _note("training.budget.gpu_hours is without effect: there is no GPU here.")
    return BudgetWatch(
        job.budget,
        gpus=job.processes if cuda else 0,
        ledger=job.working / SPENT,
    )


def _at_step(state: TrainerState) -> str:
    step = state.global_step
    if step == 0:
        return "on the longest rows, before the first step"
    return f"in step {step + 1} of {state.max_steps}"


def _was_last(checkpoint: Path) -> bool:
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state.global_step >= state.max_steps


def _stop_on_sigterm() -> threading.Event:
    requested = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: requested.set())
    return requested


def _end_interrupted(step: int) -> None:
    if ranks.is_first():
        emit("interrupted", step=step)
    sys.exit(TERMINATED)


def _prompts(tokens: Path) -> list[list[int]]:
    """Generation prompts of test rows, of training rows when there is none."""
    for name in ("test.parquet", "train.parquet"):
        table = pq.read_table(tokens / name, columns=["input_ids", "prompt_length"])
        prompts = [
            row["input_ids"][: row["prompt_length"]]
            for row in table.slice(0, 4 * saving.FIXTURE_ROWS).to_pylist()
        ]
        if saving.fixture_rows(prompts):
            return prompts
    raise StageFailed(f"No row of {tokens} has a prompt of {saving.FIXTURE_POSITIONS} tokens.")


def _labels(rows: Dataset) -> Iterator[list[int]]:
    # Never all of them as Python's lists at once.
    for some in rows.iter(1000):
        yield from some["labels"]


def _mean_of_last_tenth(losses: list[float]) -> float:
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def _modules(adapted: dict[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in adapted.items()) or "no module"


def _describe_packs(settings: dict[str, Any], rows: int, packs: int, fill: float) -> str:
    batch = int(settings.get("per_device_train_batch_size", 8))
    step = batch * int(settings.get("gradient_accumulation_steps", 1))
    return (
        f"Reading {rows:,} rows in {packs:,} packs, {fill:.1%} full: an optimizer step of {step} packs "
        f"takes in about {step * rows / packs:,.0f} rows."
    )


def _note(message: str) -> None:
    if not ranks.is_first():
        return
    _log.info(message)
    emit("note", message=message)


def _main(job: TrainingJob) -> None:
    try:
        train(job)
    except StageFailed as error:
        emit("failed", message=str(error), kind=type(error).__name__)
        raise
    except Exception as error:
        if disk.is_full(error):
            failure = disk.full("the training's output", job.working, error)
            emit("failed", message=str(failure))
            raise failure from error
        # The parent tells a crash from a kill by whether anything was said.
        emit("crashed", error=type(error).__name__, message=str(error)[:2000])
        raise


if __name__ == "__main__":
    main(TrainingJob, _main)
