"""Apply the schedules that stand in `deployments/prefect.yaml` itself, and retire those that stood there."""

from typing import TYPE_CHECKING

from flows.deployment_file import Deployment
from flows.retired_schedules import retire
from flows.server_schedules import Target, by_slug, clock_of, put
from flows.server_variables import recall, remember

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient


def apply_fixed(client: "SyncPrefectClient", deployment: Deployment, identity: "UUID") -> list[str]:
    """A line for each schedule that was created, changed or retired.

    A slug may also be a recipe's or a person's: which schedules are the file's is remembered by their ids.
    """
    there = by_slug(client, identity)
    variable = f"loraline_fixed_{deployment.name.replace('-', '_')}"
    before = recall(client, variable)
    lines: list[str | None] = []
    for schedule in deployment.schedules:
        clock = clock_of(cron=schedule.cron, timezone=schedule.timezone, seconds=schedule.interval)
        target = Target(deployment.name, identity, schedule.slug)
        found = there.get(schedule.slug)
        lines.append(put(client, target, found, clock, schedule.parameters, active=schedule.active))
    slugs = {schedule.slug for schedule in deployment.schedules}
    for slug in before.keys() - slugs:
        if slug in there and str(there[slug].id) == before[slug]:
            target = Target(deployment.name, identity, slug)
            lines.append(retire(client, target, there[slug], "it stands in the file no more"))
    if slugs or before:
        now = by_slug(client, identity)
        remember(client, variable, {slug: str(now[slug].id) for slug in sorted(slugs)})
    return [line for line in lines if line is not None]
