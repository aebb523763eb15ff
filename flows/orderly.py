"""What surrounds a retraining so that no schedule can hurt: its turn, room on the disk, its record, the collecting."""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Literal

from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterCreatedBy,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.known_trainings import newest_success
from flows.run_record import RunRecord
from flows.stack.crashes import AGAIN, repeated_run
from tasks.artifacts import Outcome
from tasks.files import expanded
from tasks.gpu_turn import give_back_gpus
from tasks.progress import announce
from tasks.promotion.lock import lock_database
from tasks.retention.collecting import collect, ensure_free
from tasks.retention.ledger import recorded
from tasks.turn import Taken, Turn, adapter_turn

_log = logging.getLogger(__name__)
SELDOM_SECONDS = 3600.0
"""How long a run that is due once a week or a month waits for another one of its adapter."""
_LONGEST_PERIOD = timedelta(days=366)
_NEWEST_FIRST = FlowRunSort.EXPECTED_START_TIME_DESC


class NotNow(Exception):
    """The run ends before it begins; `state` says why."""

    NAME = "Skipped"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        outcome = Outcome(outcome="skipped", reason=reason, prefect_flow_run_id=flow_run.id)
        self.state: State[dict[str, Any]] = Completed(
            name=self.NAME, message=reason, data=outcome.model_dump(mode="json")
        )


@contextmanager
def orderly(run: RunRecord) -> Iterator[Turn]:
    """Have the adapter's turn for the block, and leave the machine as bounded as it was.

    What a person or an event started waits for another run of its adapter; what an event asked for may be
    done by then. A run of a schedule waits for an hour where the next one is due in more than a day, and
    else not: meanwhile it has a slot of the worker, which runs of other adapters may need.

    Raises: NotNow for either, and StageFailed when the disk is too full to begin.
    """
    recipe, home = run.recipe, run.home
    try:
        with adapter_turn(
            home,
            recipe.name,
            run=flow_run.name or "loraline run",
            url=flow_run.ui_url,
            database=lock_database(run.tracker.uri, os.environ),
            within_seconds=_patience_seconds(),
            say=_tell,
        ) as turn:
            _refuse_answered(run)
            ensure_free(home, run.tracker, recipe.retention.min_free_gb)
            with recorded(
                home,
                recipe.name,
                recipe.retention.keep_runs,
                flow_run=flow_run.id,
                repeats=repeats(),
                # A schedule that somebody gave other settings goes on with them night after night.
                as_written=not run.facts.overrides or started_by() == "schedule",
            ):
                yield turn
    except Taken as taken:
        raise NotNow(str(taken)) from taken
    finally:
        give_back_gpus()
    _collect(run)


def refuse_outdated(recipe: str) -> None:
    """Let one run catch up for all that were missed: of a schedule's due runs only one does anything, the newest
    when the first of them began.

    Prefect starts every run that came due while no worker lived. Whichever starts first, each sees
    for itself whether a later one is due or was.

    Raises: NotNow when this is another one.
    """
    here = _this_run()
    if here is None or started_by() != "schedule" or here.expected_start_time is None:
        return
    try:
        found = _of_its_schedule(here, here.expected_start_time, _now(), _NEWEST_FIRST)
        # Whoever presses Retry has mended something, and means this run: what failed later, or gave way to
        # what did, has done it for nobody.
        is_passed_over = _came_to_nothing if here.run_count > 1 else _given_up
        newer = [it for it in found if it.id != here.id and not is_passed_over(it)]
        gives_way = bool(newer) and not _was_relied_on(here, newer)
    except Exception:
        # Better twice than never: the turn and the store keep the second one harmless.
        _log.warning("Prefect does not say which runs are due; this one goes on", exc_info=True)
        return
    if gives_way:
        raise NotNow(
            f"{recipe} was due at {here.expected_start_time:%Y-%m-%d %H:%M} and is late; the run "
            f"{newer[0].name}, due at {newer[0].expected_start_time:%Y-%m-%d %H:%M} UTC, does it for both."
        )


def _was_relied_on(here: FlowRun, newer: Sequence[FlowRun]) -> bool:
    """Whether a run that was due before this one gave way to it.

    It does so for both then, however late it is. Where other adapters keep the worker for longer than the
    schedule's period, a later one is always due, and none would ever train.
    """
    due = here.expected_start_time
    assert due is not None
    ends = [
        run.end_time
        for run in _of_its_schedule(here, due - _LONGEST_PERIOD, due, _NEWEST_FIRST)
        if run.id != here.id and run.state_name == NotNow.NAME and run.end_time is not None
    ]
    dues = [run.expected_start_time for run in newer if run.expected_start_time is not None]
    # Of the runs that were due by that end, this one was the newest.
    return any(due <= end and not any(it <= end for it in dues) for end in ends)


def _patience_seconds() -> float:
    """How long this run waits for another one of its adapter."""
    here = _this_run()
    if here is None or started_by() != "schedule":
        return math.inf
    # The night on which clocks go back has an hour more.
    soon = _now() + timedelta(hours=25)
    try:
        coming = _of_its_schedule(here, _now(), soon, FlowRunSort.EXPECTED_START_TIME_ASC)
    except Exception:
        _log.warning("Prefect does not say when the next run is due", exc_info=True)
        return SELDOM_SECONDS
    return 0 if any(it.id != here.id and not _given_up(it) for it in coming) else SELDOM_SECONDS


def _of_its_schedule(
    here: FlowRun, after: datetime, before: datetime, sort: FlowRunSort
) -> list[FlowRun]:
    """Runs of the schedule that started this one, of those due between two moments."""
    assert here.created_by is not None
    assert here.created_by.id is not None
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[here.deployment_id]),
                created_by=FlowRunFilterCreatedBy(id_=[here.created_by.id]),
                expected_start_time=FlowRunFilterExpectedStartTime(after_=after, before_=before),
            ),
            sort=sort,
            limit=200,
        )


def _refuse_answered(run: RunRecord) -> None:
    """What an event asks for is done once a training succeeded that began after it: it saw the same rows.

    Asked after the wait for the turn, in which that may have happened. A person gets what they start,
    and so does whoever asks for other settings than the recipe's.

    Raises: NotNow when such a training is there.
    """
    here = _this_run()
    if here is None or here.created is None or started_by() != "event":
        return
    if run.facts.force or run.facts.overrides:
        return
    name, recipe = run.recipe.name, expanded(str(here.parameters.get("recipe", ""))).absolute()
    done = newest_success(run.home, name, recipe)
    if done is not None and done > here.created:
        raise NotNow(
            f"{name} was to be trained for what happened by {here.created:%Y-%m-%d %H:%M} UTC; a run that "
            f"began at {done:%Y-%m-%d %H:%M} UTC, and ended well, has done that."
        )


def started_by() -> Literal["schedule", "event", "person"]:
    """Who started this flow run."""
    here = _this_run()
    kind = here.created_by.type if here is not None and here.created_by is not None else None
    if kind == "SCHEDULE":
        return "schedule"
    # The watchdog repeats what crashed, and nobody is there to run that again either.
    again = here is not None and AGAIN in here.tags
    return "event" if again or kind == "AUTOMATION" else "person"


def repeats() -> str | None:
    """Id of the crashed run in whose stead the watchdog started this one."""
    here = _this_run()
    return None if here is None else repeated_run(here.idempotency_key)


def _given_up(run: FlowRun) -> bool:
    return run.state is not None and (run.state.is_cancelled() or run.state.is_cancelling())


def _came_to_nothing(run: FlowRun) -> bool:
    state = run.state
    return _given_up(run) or (
        state is not None and (state.is_failed() or state.is_crashed() or state.name == NotNow.NAME)
    )


def _this_run() -> FlowRun | None:
    context = FlowRunContext.get()
    return context.flow_run if context is not None else None


def _now() -> Any:
    from prefect.types._datetime import now

    return now("UTC")


def _tell(message: str) -> None:
    _log.warning(message)
    announce("waiting", stage="dataset", message=message)


def _collect(run: RunRecord) -> None:
    """After a success: what it cost is not worth a failed run."""
    try:
        done = collect(run.home, run.tracker)
    except Exception:
        _log.warning("Old outputs could not be collected; `loraline gc` does it", exc_info=True)
        return
    if done.goes:
        _log.info("Collected %d things, %.1f MB", len(done.goes), done.bytes / 1e6)
