"""What is known of a recipe's trainings, on whatever machine: this one's are in its ledger, all in Prefect."""

import logging
from datetime import datetime, timedelta
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterName,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.types._datetime import now

from flows.stack.crashes import RETRAIN
from flows.stack.successes import is_success
from tasks.files import expanded
from tasks.home import Home
from tasks.retention import ledger
from tasks.turn import is_taken

LONGEST_WAIT = timedelta(days=7)
"""A run that has been due for longer, and has not ended, is not counted on any more."""
UNFINISHED = (
    *(StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING),
    *(StateType.PAUSED, StateType.CANCELLING),
)
"""States of a run that may still end well: one that waits for a retry or an approval began long ago."""
_log = logging.getLogger(__name__)


def under_way(home: Home, name: str, recipe: Path) -> str | None:
    """Which training takes new rows along, or is followed by a look that counts them; None: none does.

    One that computes here has the adapter's turn, and its death frees that. Of the others Prefect knows.

    Raises: whatever the client raises when the server does not answer.
    """
    if is_taken(home, name):
        return f"{name} is being trained: nobody is asked before that has ended."
    due = now("UTC")
    waiting = FlowRunFilter(
        state=_of_type(StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING),
        expected_start_time=FlowRunFilterExpectedStartTime(after_=due - LONGEST_WAIT, before_=due),
    )
    for run in _retrainings(waiting, FlowRunSort.EXPECTED_START_TIME_DESC):
        if _is_about(run, name, recipe):
            how = "is at it" if run.state_type == StateType.RUNNING else "has not begun"
            return f"The run {run.name} is to train it and {how}: nobody is asked again."
    return None


def newest_success(home: Home, name: str, recipe: Path) -> datetime | None:
    """When the newest successful training of the recipe, as it is written, began; None without one.

    While Prefect does not answer, of this machine's.
    """
    try:
        return _newest_success(home, name, recipe)
    except Exception:
        _log.warning("Prefect does not say what other machines have trained", exc_info=True)
        return ledger.newest_success(home, name)


def newest_success_and_begun(
    home: Home, name: str, recipe: Path
) -> tuple[datetime | None, list[datetime] | None]:
    """The same, and when those began that may still succeed; None for these while Prefect does not say."""
    begun = [entry.started for _, entry in ledger.entries(home).get(name, [])[:1]]
    started = FlowRunFilterStartTime(is_null_=False)
    try:
        # First: what ends meanwhile is among the successes, too.
        unfinished = _retrainings(
            FlowRunFilter(state=_of_type(*UNFINISHED), start_time=started),
            FlowRunSort.START_TIME_DESC,
        )
        success = _newest_success(home, name, recipe)
    except Exception:
        _log.warning("Prefect does not say what other machines train", exc_info=True)
        return ledger.newest_success(home, name), None
    begun += [
        run.start_time for run in unfinished if run.start_time and _is_about(run, name, recipe)
    ]
    return success, begun


def _newest_success(home: Home, name: str, recipe: Path) -> datetime | None:
    ended = _retrainings(
        FlowRunFilter(state=_of_type(StateType.COMPLETED), name=FlowRunFilterName(like_=name)),
        FlowRunSort.END_TIME_DESC,
    )
    began = [
        run.start_time
        for run in ended
        if run.start_time is not None
        # By a clock that was ahead.
        and run.start_time <= now("UTC")
        and _is_about(run, name, recipe)
        and is_success(run.model_dump(mode="json", include={"parameters", "state", "created_by"}))
    ]
    mine = ledger.newest_success(home, name)
    return max([*began, *([mine] if mine else [])], default=None)


def _retrainings(where: FlowRunFilter, sort: FlowRunSort) -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[RETRAIN])),
            flow_run_filter=where,
            sort=sort,
            limit=200,
        )


def _of_type(*types: StateType) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))


def _is_about(run: FlowRun, name: str, recipe: Path) -> bool:
    """Whether it is to train the adapter; a schedule's run may have lost its recipe, and bears the name."""
    if given := run.parameters.get("recipe"):
        return expanded(str(given)).absolute() == recipe
    return run.created_by is not None and run.created_by.display_value == name
