"""Train one adapter in a worker process, go on from its checkpoints, and publish what came out."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks import launch
from tasks.artifacts import Adapter, Tokens
from tasks.base import Base
from tasks.errors import (
    Interrupted,
    OutOfMemory,
    StageFailed,
    WorkerFailed,
)
from tasks.gpu_turn import take_gpus
from tasks.home import Home
from tasks.start import FROM_BASE, Beginning, Start, note_start, working_folder
from tasks.store import Store, fingerprint
from tasks.training import smaller
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.kernel_kills import kernel_kills
from tasks.training.last_words import LastWords
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

OUTPUT_VERSION = 9
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
    `on_event` is called, mostly from another thread, with the worker's `step` and `note` events, and
    with `line` (message) for everything else that it writes.

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
        if on_event is not None and event["event"] in ("step", "note", "line"):
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
            attention=settings.attention,
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

    The same rows make a step then as before, so that it is the same training, from its checkpoints too.
    """
    if settings.smaller_batches:
        job = smaller.remembered(job)
    try:
        return _run_worker(job, settings, log, on_event)
    except OutOfMemory as error:
        again = smaller.with_smaller_batches(job)
        if not settings.smaller_batches:
            if again is None:
                raise
            raise OutOfMemory(f"{error}\n{smaller.OFFER}") from error
        if again is None:
            raise OutOfMemory(f"{error}\n{smaller.why_not_smaller(job)}") from error
        # A restart must not begin with the batch that did not fit.
        smaller.remember(again)
        batch, accumulation = smaller.rows_at_once(again.training_config)
        message = (
            f"{str(error).splitlines()[0]} Once more with per_device_train_batch_size {batch} and "
            f"gradient_accumulation_steps {accumulation}."
        )
        on_event({"event": "note", "message": message})
        return _run_worker(again, settings, log, on_event)


def _run_worker(
    job: TrainingJob,
    settings: TrainingSettings,
    log: Path,
    on_event: Callable[[Event], None] | None,
) -> TrainingResult:
    said = LastWords(on_event)
    kills = kernel_kills()
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
            on_line=lambda line: said.hear({"event": "line", "message": line}),
            environment=worker_environment(settings.processes),
            timeout_seconds=settings.timeout_minutes and settings.timeout_minutes * 60,
            stall_seconds=settings.stall_minutes * 60,
        )
    except Interrupted as error:
        raise Interrupted(f"{error} {said.where_it_goes_on()}") from error
    except WorkerFailed as error:
        now = kernel_kills()
        by_kernel = kills is not None and now is not None and now > kills
        raise said.explain(error, log, by_kernel=by_kernel) from error
    if not job.result.is_file():
        raise StageFailed(f"The training worker ended without a result. Full log: {log}")
    return TrainingResult.model_validate_json(job.result.read_text(encoding="utf-8"))
