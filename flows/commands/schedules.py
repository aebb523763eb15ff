"""`loraline schedules`: which adapters are retrained when, and how it went the last time."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from tasks.home import home

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import DeploymentSchedule, FlowRun
    from prefect.client.schemas.responses import DeploymentResponse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print a line for each schedule. Raises StageFailed without a server."""
    from flows.standing_server import enter_standing_server
    from flows.streams import own_standard_output

    with own_standard_output() as out:
        server = enter_standing_server(home())
        rows = list_schedules()
        if args.json:
            out.write(json.dumps({"server": server.url, "schedules": rows}) + "\n")
        elif not rows:
            out.write(
                "No recipe is scheduled; `loraline deploy` schedules those with a `schedule`.\n"
            )
        else:
            _print(rows, out)
    return 0


def list_schedules() -> list[dict[str, Any]]:
    """A dictionary for each schedule of a recipe, by name: what `--json` prints."""
    from prefect.client.orchestration import get_client

    from flows.scheduled_recipes import RETRAIN, WATCH
    from flows.server_schedules import schedules_of

    with get_client(sync_client=True) as client:
        rows = [
            _row(client, name, deployment, schedule)
            for name in (RETRAIN, WATCH)
            for deployment, schedule in schedules_of(client, name)
        ]
    return sorted(rows, key=lambda row: (row["name"], row["deployment"]))


def _row(
    client: "SyncPrefectClient",
    name: str,
    deployment: "DeploymentResponse",
    schedule: "DeploymentSchedule",
) -> dict[str, Any]:
    from flows.server_schedules import clock_text, next_due, recipe_behind

    clock: Any = schedule.schedule
    active = schedule.active and not deployment.paused
    due = next_due(clock) if active else None
    last = _last_run(client, deployment, schedule)
    if last is not None:
        last = _repetition(client, last) or last
    return {
        "name": schedule.slug,
        "deployment": name,
        "cron": getattr(clock, "cron", None) or clock_text(clock),
        "timezone": getattr(clock, "timezone", None) or "UTC",
        "recipe": recipe_behind(client, schedule),
        "paused": not active,
        "next_run": due and due.isoformat(timespec="minutes"),
        "last_outcome": last and last.state_name,
        "last_reason": last and last.state and last.state.message,
        "last_run": last and last.start_time and last.start_time.isoformat(timespec="seconds"),
        "last_flow_run_id": last and str(last.id),
    }


def _last_run(
    client: "SyncPrefectClient", deployment: "DeploymentResponse", schedule: "DeploymentSchedule"
) -> "FlowRun | None":
    """The newest run of this schedule that was begun."""
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterCreatedBy,
        FlowRunFilterDeploymentId,
        FlowRunFilterStartTime,
    )
    from prefect.client.schemas.sorting import FlowRunSort

    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
            created_by=FlowRunFilterCreatedBy(id_=[schedule.id], type_=["SCHEDULE"]),
            start_time=FlowRunFilterStartTime(is_null_=False),
        ),
        sort=FlowRunSort.START_TIME_DESC,
        limit=1,
    )
    return runs[0] if runs else None


def _repetition(client: "SyncPrefectClient", run: "FlowRun") -> "FlowRun | None":
    """The run in which a crashed one goes on, once it was begun: how that ends is how it went."""
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterIdempotencyKey,
        FlowRunFilterStartTime,
    )

    from flows.stack.crashes import repetition_key

    if run.state is None or not run.state.is_crashed():
        return None
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            idempotency_key=FlowRunFilterIdempotencyKey(
                any_=[repetition_key(str(run.id), run.run_count)]
            ),
            start_time=FlowRunFilterStartTime(is_null_=False),
        ),
        limit=1,
    )
    # That one may have been cut off by a stop of the stack in its turn.
    return (_repetition(client, found[0]) or found[0]) if found else None


def _print(rows: list[dict[str, Any]], out: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "deployment", "cron", "zone", "next run", "last outcome"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        last = row["last_outcome"]
        table.add_row(
            row["name"],
            row["deployment"],
            row["cron"],
            row["timezone"],
            "paused" if row["paused"] else row["next_run"] or "never",
            f"{last} {row['last_run']}" if last else "not run yet",
        )
    Console(file=out, width=None if out.isatty() else 160).print(table)
