"""Retire one schedule of a deployment, and leave the runs of its others alone.

With a schedule Prefect deletes every run of the deployment that waits, whichever schedule made it: those of
other adapters for which no worker had a slot yet, or that were missed while the stack was down. A write
deletes only what is due later, and that is planned again. So a schedule is stopped and renamed at once, and
deleted when nothing waits any more.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import DeploymentSchedule

    from flows.server_schedules import Target

_PREFIX = "retired:"
"""Of the slug: no recipe's name has a colon."""


def is_retired(slug: str) -> bool:
    """Whether a schedule of this slug is nobody's any more."""
    return slug.startswith(_PREFIX)


def retire(
    client: "SyncPrefectClient", target: "Target", schedule: "DeploymentSchedule", why: str
) -> str:
    """Take away the schedule and the runs that it has ahead of it or that wait; says so in words."""
    client.update_deployment_schedule(
        target.identity,
        schedule.id,
        active=False,
        slug=f"{_PREFIX}{schedule.id}",
        # What is not given is cleared.
        schedule=schedule.schedule,
        parameters=schedule.parameters,
    )
    while runs := _waiting(client, target.identity, created_by={"id_": [str(schedule.id)]}):
        for run in runs:
            client.delete_flow_run(run)
    delete_retired(client, target.identity)
    return f"{target}: retired, {why}"


def delete_retired(client: "SyncPrefectClient", deployment: "UUID") -> None:
    """Delete the deployment's retired schedules, unless a run waits that would go with them."""
    retired = [
        schedule
        for schedule in client.read_deployment_schedules(deployment)
        if is_retired(schedule.slug or "")
    ]
    due = {"before_": datetime.now(UTC).isoformat()}
    if retired and not _waiting(client, deployment, next_scheduled_start_time=due):
        for schedule in retired:
            client.delete_deployment_schedule(deployment, schedule.id)


def _waiting(client: "SyncPrefectClient", deployment: "UUID", **filters: Any) -> "list[UUID]":
    """Runs that no worker has taken; a page of them."""
    from prefect.client.schemas.filters import FlowRunFilter

    wanted = FlowRunFilter.model_validate(
        {
            "deployment_id": {"any_": [str(deployment)]},
            "state": {"type": {"any_": ["SCHEDULED"]}},
            **filters,
        }
    )
    return [run.id for run in client.read_flow_runs(flow_run_filter=wanted)]
