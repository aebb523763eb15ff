"""One schedule of a deployment on the Prefect server: created, changed, read."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from flows.recipe_memory import recalled, remember_recipe
from flows.retired_schedules import is_retired

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.responses import DeploymentResponse


@dataclass(frozen=True)
class Target:
    """Which schedule is meant."""

    deployment: str
    identity: "UUID"
    """The deployment's."""
    slug: str

    def __str__(self) -> str:
        return f"schedule {self.deployment}/{self.slug}"


def put(
    client: "SyncPrefectClient",
    target: Target,
    there: "DeploymentSchedule | None",
    clock: Any,
    parameters: dict[str, Any],
    *,
    active: bool = True,
) -> str | None:
    """Make the schedule what it should be; what was done in words, None where nothing was to do.

    `active` counts for a new one only: what an operator paused stays paused.
    """
    from prefect.client.schemas.actions import DeploymentScheduleCreate

    before = None
    if recipe := parameters.get("recipe"):
        before = there and recipe_behind(client, there)
        remember_recipe(client, target.slug, recipe)
    if there is None:
        new = DeploymentScheduleCreate(
            schedule=clock, active=active, parameters=parameters, slug=target.slug
        )
        client.create_deployment_schedules(target.identity, [new])
        return f"{target}: created, {clock_text(clock)}{'' if active else ' (paused)'}"
    same = _same_clock(there.schedule, clock)
    if same and there.parameters == parameters:
        return None
    client.update_deployment_schedule(
        target.identity, there.id, schedule=clock, parameters=parameters
    )
    what = [] if same else [f"now {clock_text(clock)}"]
    if before not in (None, recipe):
        what.append(f"runs {recipe} instead of {before}")
    told = ", ".join(what) or "its parameters restored"
    return f"{target}: {told}{'' if there.active else ' (still paused)'}"


def by_slug(client: "SyncPrefectClient", identity: "UUID") -> "dict[str, DeploymentSchedule]":
    """The deployment's schedules that bear a slug and are not retired."""
    return {
        it.slug: it
        for it in client.read_deployment_schedules(identity)
        if it.slug and not is_retired(it.slug)
    }


def recipe_behind(client: "SyncPrefectClient", schedule: "DeploymentSchedule") -> str | None:
    """The path of the recipe that the schedule runs; None for a schedule that is not ours."""
    given = schedule.parameters.get("recipe")
    return str(given) if given else recalled(client, schedule.slug or "")


def schedules_of(
    client: "SyncPrefectClient", name: str
) -> "Iterator[tuple[DeploymentResponse, DeploymentSchedule]]":
    """The schedules of a deployment that bear a slug; none where it is not deployed."""
    from prefect.exceptions import ObjectNotFound

    try:
        deployment = client.read_deployment_by_name(f"{name}/{name}")
    except ObjectNotFound:
        return
    for schedule in by_slug(client, deployment.id).values():
        yield deployment, schedule


def clock_of(
    *,
    cron: str | None = None,
    timezone: str | None = None,
    seconds: float | None = None,
    anchor: datetime | None = None,
) -> Any:
    """Prefect's object for a cron expression in its zone (default: UTC), or for every so many seconds.

    `anchor`: a moment at which the latter is due; default: now.
    """
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    if cron is not None:
        return CronSchedule(cron=cron, timezone=timezone or "UTC")
    assert seconds is not None
    return IntervalSchedule(
        interval=timedelta(seconds=seconds), anchor_date=anchor or datetime.now(UTC)
    )


def clock_text(clock: Any) -> str:
    """`0 2 * * * Europe/Berlin`, or `every 900 s`."""
    if hasattr(clock, "cron"):
        return f"{clock.cron} {clock.timezone or 'UTC'}"
    if hasattr(clock, "interval"):
        return f"every {clock.interval.total_seconds():g} s"
    return str(getattr(clock, "rrule", clock))


def next_due(clock: Any) -> datetime | None:
    """When a schedule is due next, by the server's own reckoning; None for one that has ended."""
    from prefect.server.schemas import schedules

    # The client's classes know no dates.
    kind = getattr(schedules, type(clock).__name__)
    there = kind.model_validate(clock.model_dump())
    return next(iter(asyncio.run(there.get_dates(1))), None)


def _same_clock(there: Any, wanted: Any) -> bool:
    # An interval's anchor may be the moment at which it was created.
    return type(there) is type(wanted) and clock_text(there) == clock_text(wanted)
