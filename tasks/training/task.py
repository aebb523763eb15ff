"""The Prefect task of the stage `training`."""

import contextvars
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID

from prefect import State, get_run_logger, task
from prefect.artifacts import create_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.context import TaskRunContext

from tasks.addresses import without_passwords
from tasks.artifacts import Adapter, Tokens
from tasks.base import Base
from tasks.errors import Preempted
from tasks.home import Home
from tasks.late import deliver
from tasks.paced import Paced
from tasks.progress import Event, announce
from tasks.progress_words import step_text
from tasks.stage_report import asking_once, ended, started
from tasks.start import FROM_BASE, Beginning
from tasks.store import Store
from tasks.training.settings import TrainingSettings

SECONDS_BEFORE_RETRIES: list[float] = [15, 120, 600]
PROGRESS_KEY = "loraline-training-progress"
SECONDS_BETWEEN_LOG_LINES = 5.0
SECONDS_BETWEEN_ARTIFACT_UPDATES = 5.0
"""Together four writes in ten seconds, however much the trainer says: each takes some milliseconds of
processors that train."""
LINES = 100
"""In one log line of Prefect's: a traceback through torch and transformers has room."""
LONGEST_LINE = 1000
"""Characters."""


def was_preempted(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Whether a failed attempt left a checkpoint to go on from, and nothing is wrong with the recipe."""
    try:
        state.result()
    except Preempted:
        return True
    except BaseException:
        return False
    return False


# The store is the cache: it is keyed by content and checked byte by byte. Retried is only what was
# preempted, on this machine, after the time that a scheduler takes to give it back; all else that fails
# here fails again, and a killed training goes on from its checkpoint when the flow is run again.
@task(
    name="train adapter",
    task_run_name="train adapter: {tokens.rows[train]:,} rows",
    persist_result=False,
    cache_policy=NO_CACHE,
    retries=len(SECONDS_BEFORE_RETRIES),
    retry_delay_seconds=SECONDS_BEFORE_RETRIES,
    retry_condition_fn=was_preempted,
)
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
) -> Adapter:
    """A LoRA adapter of the base, trained on the tokens by a worker process.

    Raises: UserError for settings that do not fit the base; StageFailed when training fails.
    """
    from tasks.training import work

    started("training")
    progress = _Progress(get_run_logger())
    # Events come in the thread that reads the worker's output, which would know of no task run.
    context = contextvars.copy_context()
    try:
        adapter = work.train_adapter(
            store,
            settings,
            seed=seed,
            tokens=tokens,
            base=base,
            home=home,
            beginning=beginning,
            force=force,
            on_event=lambda event: context.run(progress.hear, event),
        )
    finally:
        progress.close()
    ended(
        "training",
        adapter,
        f"{'Reused' if adapter.reused else 'Trained'} an adapter of "
        f"{adapter.trainable_parameters:,} parameters (sha256 {adapter.sha256[:12]})",
        description="Loss curve, what was trained, and how fast",
    )
    return adapter


class _Progress:
    """Passes the worker's words on: events to all listeners, and little of everything to Prefect."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        # Pages know whose an artifact is by the context of the task run, which other threads lack.
        self._context = contextvars.copy_context()
        self._lines = Paced[str | None](self._log, seconds=SECONDS_BETWEEN_LOG_LINES, most=LINES)
        self._bar = Paced[Event](self._show, seconds=SECONDS_BETWEEN_ARTIFACT_UPDATES, most=1)
        self._newest: Event | None = None
        self._artifact: UUID | None = None

    def hear(self, event: Event) -> None:
        kind = event["event"]
        if kind == "line":
            self._lines.add(without_passwords(str(event["message"]))[:LONGEST_LINE])
            return
        values = {name: value for name, value in event.items() if name != "event"}
        announce(kind, stage="training", **values)
        if kind == "note":
            self._lines.add(str(event["message"]))
            return
        is_first, self._newest = self._newest is None, event
        if is_first:
            # Stands for the newest step, whichever that is by then.
            self._lines.add(None)
        self._bar.add(event)

    def close(self) -> None:
        """Pass on what waits, a traceback for example."""
        if self._newest is not None:
            self._lines.add(None)
        self._lines.close()
        self._bar.close()

    def _log(self, lines: Sequence[str | None], left_out: int) -> None:
        told = [f"({left_out:,} lines more stand in the worker's log)"] if left_out else []
        told += [line for line in lines if line is not None]
        newest, self._newest = self._newest, None
        if newest is not None:
            told.append(step_text(newest))
        if told:
            failed = any(line.startswith("Traceback (most recent") for line in told)
            self._logger.log(logging.ERROR if failed else logging.INFO, "%s", "\n".join(told))

    def _show(self, events: Sequence[Event], _: int) -> None:
        event = events[-1]
        percent, told = 100.0 * event["step"] / event["total_steps"], step_text(event)
        try:
            if self._artifact is None:
                self._artifact = self._context.run(_progress_artifact, percent, told)
                return
        except Exception:
            # Prefect's server may be away for a while; the training does not need it.
            self._logger.warning("The progress artifact could not be made", exc_info=True)
            return
        # A late delivery comes from another thread, and a context is in one at a time.
        context = self._context.copy()
        update = partial(context.run, _update, self._artifact, percent, told)
        deliver(PROGRESS_KEY, "the progress of the training", update)


def _update(artifact: UUID, percent: float, told: str) -> None:
    # Prefect's `update_progress_artifact` makes a client each time, and reads all certificates for it.
    with asking_once() as client:
        client.update_artifact(artifact, ArtifactUpdate(data=percent, description=told))


def _progress_artifact(percent: float, told: str) -> UUID:
    """The bar of this run: a new one, or the one that an attempt before this one made."""
    attempt = TaskRunContext.get()
    if attempt is not None and attempt.task_run.run_count > 1:
        mine = ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[attempt.task_run.flow_run_id]),
            key=ArtifactFilterKey(any_=[PROGRESS_KEY]),
        )
        with get_client(sync_client=True) as client:
            found = client.read_artifacts(artifact_filter=mine, limit=1)
        if found:
            _update(found[0].id, percent, told)
            return found[0].id
    made = create_progress_artifact(percent, key=PROGRESS_KEY, description=told)
    assert isinstance(made, UUID)
    return made
