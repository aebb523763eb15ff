"""The forms that wait in Prefect for a person: one per model, closed when a newer one comes or time is up."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import OrchestrationResult, SetStateStatus
from prefect.states import Completed

FLOW = "approve"
_log = logging.getLogger(__name__)


def waiting_forms() -> list[FlowRun]:
    """The suspended runs of the flow `approve`, oldest first."""
    found: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        while True:
            page = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED]))
                ),
                limit=200,
                offset=len(found),
            )
            found += page
            if len(page) < 200:
                return sorted(
                    found, key=lambda run: run.created or datetime.min.replace(tzinfo=UTC)
                )


def make_way(name: str, version: str, own_id: str | None) -> str | None:
    """Close the forms of older versions of the name; the newer version that already has one, or None."""
    for run in waiting_forms():
        given = run.parameters
        if given.get("name") != name or str(run.id) == own_id:
            continue
        other = str(given.get("version"))
        if _number(other) > _number(version):
            return other
        _close(run, "Superseded", f"superseded by v{version}")
    return None


def close_expired(now: datetime | None = None) -> int:
    """End the forms whose time is up, not as failures; returns how many."""
    now = now or datetime.now(UTC)
    expired = [run for run in waiting_forms() if has_expired(run.parameters, run.created, now)]
    return sum(_close(run, "Expired", _expired(run.parameters)) for run in expired)


def has_expired(parameters: dict[str, Any], created: datetime | None, now: datetime) -> bool:
    """Whether a form that was made then has waited longer than it should."""
    hours = float(parameters.get("hours") or 72.0)
    return created is not None and now > created + timedelta(hours=hours)


def created(run_id: str | None) -> datetime | None:
    """When the run was made."""
    if run_id is None:
        return None
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(run_id)).created


def answered(run_id: str | None) -> datetime | None:
    """When somebody answered the form; a worker may take the answer up much later."""
    if run_id is None:
        return None
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(UUID(run_id))
    return max((it.timestamp for it in states if it.name == "Resuming"), default=None)


def _expired(parameters: dict[str, Any]) -> str:
    name, version = parameters.get("name"), parameters.get("version")
    return (
        f"Nobody answered within {float(parameters.get('hours') or 72.0):g} hours. Version {version} of {name} "
        f"stays as it is; to promote it: loraline promote {name} {version} --reason '...'"
    )


def _close(run: FlowRun, state: str, message: str) -> bool:
    """End a form that still waits; False when it was answered since it was listed: its answer counts."""
    with get_client(sync_client=True) as client:
        current = client.read_flow_run(run.id).state
        if current is None or run.state is None or current.id != run.state.id:
            _log.info("The form %s was answered a moment ago and stays", run.id)
            return False
        # Not by force: the server has its say as well.
        answer: OrchestrationResult[Any] = client.set_flow_run_state(
            run.id, Completed(name=state, message=message)
        )
    if answer.status is not SetStateStatus.ACCEPT:
        _log.warning("Prefect did not close the form %s: %s", run.id, answer.details)
        return False
    _log.info("The form %s is closed: %s", run.id, message)
    return True


def _number(version: str) -> int:
    return int(version) if version.isdecimal() else 0
