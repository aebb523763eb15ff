"""Train one adapter in a worker process, go on from its checkpoints, and publish what came out."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks import launch
from tasks.artifacts import Adapter, Tokens
from tasks.base import Base
from tasks.errors import Interrupted, OutOfMemory, Preempted, StageFailed, WorkerFailed
from tasks.gpu_turn import take_gpus
from tasks.home import Home
from tasks.start import FROM_BASE, Beginning, Start, note_start, working_folder
from tasks.store import Store, fingerprint
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.mirrored import Mirror
from tasks.training.settings import TrainingSettings
from tasks.training.start_files import (
    refuse_seen_rows,
    start_job,
    with_beginning,
    write_earlier_rows,
)
from tasks.training.starting import elsewhere, worker_command, worker_environment
from tasks.training.summary import summary

OUTPUT_VERSION = 3
"""To be raised when the same inputs give another adapter than before."""
RESULT = "result.json"
Event = dict[str, Any]


def fingerprint_of(
    settings: TrainingSettings,
    *,
    seed: int,
    tokens_fingerprint: str,
    base: Base,
    start: Start | None = None,
) -> str:
    """What decides the adapter: settings, seed, token ids, the base's bytes and those of the start."""
    return fingerprint(
        "training",
        OUTPUT_VERSION,
        settings.content(base.path) | {"seed": seed},
        _fingerprints(tokens_fingerprint, base, start),
    )


def inputs_of(
    settings: TrainingSettings,
    *,
    seed: int,
    tokens_fingerprint: str,
    base: Base,
    start: Start | None = None,
) -> dict[str, Any]:
    """The same by the names that a person knows: a checkpoint goes on with these inputs only."""
    return {
        **settings.content(base.path),
        "seed": seed,
        "output_version": OUTPUT_VERSION,
        **_fingerprints(tokens_fingerprint, base, start),
    }


def _fingerprints(tokens: str, base: Base, start: Start | None) -> dict[str, str]:
    return {
        "tokens": tokens,
        "base": base.weights_sha256,
        "tokenizer": base.tokenizer_sha256,
        **({} if start is None else {"start": start.adapter_sha256}),
    }


def train_adapter(
    store: Store,
    settings: TrainingSettings,
    *,
    seed: int,
    tokens: Tokens,
    base: Base,
    home: Home,
    beginning: Beginning = FROM_BASE,
    force: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Adapter:
    """The adapter for these inputs: from the store, or trained now.

    An interrupted or killed training leaves its checkpoints in `home.work`; the next call with the
    same inputs goes on from the newest complete one. `force` trains again what is complete in the
    store. `beginning` says what the adapter starts from; it is fetched only when something is trained.
    `on_event` is called, mostly from another thread, with the worker's `step` and `note` events.

    Raises: UserError for settings that do not fit the base; StageFailed when training cannot end
    well; WorkerFailed when the worker dies; Interrupted on Ctrl-C.
    """
    started = time.monotonic()
    decisive: Any = {
        "seed": seed,
        "tokens_fingerprint": tokens.fingerprint,
        "base": base,
        "start": beginning.start,
    }
    key = fingerprint_of(settings, **decisive)
    working = working_folder(home, key)
    mirror = Mirror(store.remote, key, working / "checkpoints")
    inputs = inputs_of(settings, **decisive)

    def hear(event: Event) -> None:
        mirror.hear(event)
        if on_event is not None and event["event"] in ("step", "note"):
            on_event(event)

    def build(folder: Path) -> None:
        if on_event is not None:
            # From this thread and before the worker starts: who listens may open what takes long.
            on_event({"event": "note", "message": "Starting the worker process."})
        note_start(beginning, key, store)
        files = None if beginning.start is None else beginning.start.files()
        if files is not None:
            refuse_seen_rows(tokens.path / "test.parquet", files, beginning.seen)
        job = TrainingJob(
            base=base.path,
            base_name=base.model,
            base_commit=base.commit,
            tokens=tokens.path,
            working=working,
            seed=seed,
            method=settings.method,
            peft_config=settings.resolved_peft_config(),
            training_config=settings.resolved_training_config(base.path),
            quantization=settings.quantization,
            dtype=settings.dtype,
            loraplus_lr_ratio=settings.loraplus_lr_ratio,
            target_slices=settings.target_slices,
            guards=settings.guards,
            budget=settings.budget,
            stall_seconds=settings.stall_minutes * 60,
            processes=settings.spread.total,
            sharding=settings.sharding,
            start=None if files is None else start_job(files, settings.method),
            inputs=inputs,
        )
        with mirror:
            result = _trained(job, settings, home.logs / f"training-{key[:16]}.log", hear)
        result = with_beginning(result, beginning)
        shutil.copytree(job.output, folder, dirs_exist_ok=True)
        if files is not None:
            write_earlier_rows(folder, files)
        (folder / RESULT).write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (folder / "summary.md").write_text(
            summary(
                result,
                method=job.method,
                peft_config=job.peft_config,
                training_config=job.training_config,
                quantization=job.quantization,
                seed=seed,
                target_slices=job.target_slices,
                loraplus_lr_ratio=job.loraplus_lr_ratio,
                picture=folder / "loss.png",
            ),
            encoding="utf-8",
        )

    if force or store.find("training", key) is None:
        # Before the output's lock, in every stage: who has the one never waits for the other.
        take_gpus(settings.spread.processes)
    stored = store.publish("training", key, build, force=force)
    if not stored.reused:
        # Only now: until the output was published, the checkpoints were all there was.
        shutil.rmtree(working, ignore_errors=True)
        mirror.forget()
    result = TrainingResult.model_validate_json((stored.path / RESULT).read_text(encoding="utf-8"))
    return Adapter(
        path=stored.path,
        fingerprint=key,
        reused=stored.reused,
        seconds=time.monotonic() - started,
        sha256=result.adapter_sha256,
        trainable_parameters=result.trainable_parameters,
    )


def read_result(adapter: Adapter) -> TrainingResult:
    """What the training that made the adapter came to."""
    return TrainingResult.model_validate_json((adapter.path / RESULT).read_text(encoding="utf-8"))


def _trained(
    job: TrainingJob,
    settings: TrainingSettings,
    log: Path,
    on_event: Callable[[Event], None],
) -> TrainingResult:
    """Train; where memory runs out and the recipe allows it, once more in batches of half the size.

    As many rows make a step then as before, so that it is the same training, from its checkpoints too.
    """
    try:
        return _run_worker(job, settings, log, on_event)
    except OutOfMemory as error:
        smaller = _with_half_the_batch(job) if settings.smaller_batches else None
        if smaller is None:
            raise
        values = smaller.training_config
        message = (
            f"{str(error).splitlines()[0]} Once more with per_device_train_batch_size "
            f"{values['per_device_train_batch_size']} and gradient_accumulation_steps "
            f"{values['gradient_accumulation_steps']}."
        )
        on_event({"event": "note", "message": message})
        return _run_worker(smaller, settings, log, on_event)


def _with_half_the_batch(job: TrainingJob) -> TrainingJob | None:
    """The same rows in each step, half of them at once; None where a batch cannot be halved."""
    values = job.training_config
    batch = int(values.get("per_device_train_batch_size", 8))
    if batch % 2:
        return None
    halved = {
        "per_device_train_batch_size": batch // 2,
        "gradient_accumulation_steps": 2 * int(values.get("gradient_accumulation_steps", 1)),
    }
    return job.model_copy(update={"training_config": {**values, **halved}})


def _run_worker(
    job: TrainingJob,
    settings: TrainingSettings,
    log: Path,
    on_event: Callable[[Event], None] | None,
) -> TrainingResult:
    said = _LastWords(on_event)
    job.result.unlink(missing_ok=True)
    argv = worker_command(
        "tasks.training.worker", launch.write_job(job.working, job), settings.spread
    )
    if settings.machines > 1:
        said.hear({"event": "note", "message": elsewhere(argv)})
    try:
        launch.run(
            argv,
            log=log,
            name="Training",
            on_event=said.hear,
            environment=worker_environment(settings.processes),
            timeout_seconds=settings.timeout_minutes and settings.timeout_minutes * 60,
            stall_seconds=settings.stall_minutes * 60,
        )
    except Interrupted as error:
        raise Interrupted(f"{error} {said.where_it_goes_on()}") from error
    except WorkerFailed as error:
        raise said.explain(error, log) from error
    if not job.result.is_file():
        raise StageFailed(f"The training worker ended without a result. Full log: {log}")
    return TrainingResult.model_validate_json(job.result.read_text(encoding="utf-8"))


class _LastWords:
    """Remembers what the worker said, to explain its end."""

    def __init__(self, on_event: Callable[[Event], None] | None) -> None:
        self._on_event = on_event
        self._step = 0
        self._saved: int | None = None
        self._failed: str | None = None
        self._out_of_memory = False
        self._crashed = ""
        self._preempted = False
        self._advice = (
            "Lower training.training_config.per_device_train_batch_size (and raise "
            "gradient_accumulation_steps by as much), set activation_checkpointing: true, or shorten "
            "tokenization.max_length."
        )

    def hear(self, event: Event) -> None:
        kind = event["event"]
        if kind == "step":
            self._step = int(event["step"])
        elif kind in ("saved", "interrupted"):
            self._saved = int(event["step"])
            self._preempted = kind == "interrupted"
        elif kind == "memory":
            self._advice = str(event["advice"])
        elif kind == "failed":
            self._failed = str(event["message"])
            self._out_of_memory = bool(event.get("out_of_memory"))
        elif kind == "crashed" and not self._crashed:
            # Of several processes the first to go says why; the others only miss it.
            self._crashed = f"{event['error']}: {event['message']}"
        if self._on_event is not None:
            self._on_event(event)

    def where_it_goes_on(self) -> str:
        if not self._saved:
            return "No step was completed; the same command starts training again."
        return f"The same command goes on from the checkpoint of step {self._saved}."

    def explain(self, error: WorkerFailed, log: Path) -> StageFailed:
        if self._failed is not None:
            kind = OutOfMemory if self._out_of_memory else StageFailed
            return kind(f"{self._failed}\nFull log: {log}")
        text = f"{error}\n{self.where_it_goes_on()}"
        if " gave no sign of life " in text:
            return WorkerFailed(
                f"After step {self._step} nothing was heard of the training for as long as "
                "training.stall_minutes allows. Where it hung, the log's last lines say, if they hold "
                "stacks. If its steps, its evaluation or loading the base really take so long, raise "
                f"training.stall_minutes.\n{text}"
            )
        if " ran longer than " in text:
            return WorkerFailed(f"{text} Raise training.timeout_minutes to let it.")
        if self._preempted:
            return Preempted(
                "Preempted: the training process was told to end (SIGTERM), and not by this run: by a "
                "scheduler that takes the machine back, or a person. "
                f"{self.where_it_goes_on()}\nFull log: {log}"
            )
        if self._crashed and self._crashed not in text:
            # The launcher of several processes has the last word in the log.
            text = f"{self._crashed}\n{text}"
        if not self._crashed:
            # The launcher in between turns a child killed by a signal into exit code 1.
            text = (
                f"The training process was ended from outside after step {self._step}: it left no "
                "traceback. When nobody did that, the kernel did for lack of memory. "
                f"{self._advice}\n{text}"
            )
        return WorkerFailed(text)
