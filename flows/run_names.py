"""What a retraining is called, in Prefect and in MLflow: `quickstart v7 · 6,120 rows · nightly`."""

from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from flows.recipe_heading import heading_of
from flows.stack.crashes import AGAIN
from tasks.late import deliver
from tasks.schedule import cadence
from tasks.stage_report import asking_once

OF_WATCHED = {"data": "new data", "base": "new base"}
"""The first word of a reason that `watch-data` gives -> the cause; its figures would fill the name."""
LONGEST_CAUSE = 40
"""Characters of an event's reason in a name; the whole one is the run's parameter."""


def run_name(adapter: str, *, version: str | None, rows: int | None, cause: str) -> str:
    """The name as far as it is known; `rows` are those that are trained on."""
    parts = [adapter + (f" v{version}" if version else "")]
    if rows is not None:
        parts.append(f"{rows:,} rows" if rows != 1 else "1 row")
    return " · ".join([*parts, cause])


def first_name() -> str:
    """The name of this flow run before anything is known but its recipe and its cause."""
    given = flow_run.parameters
    path = str(given.get("recipe") or "")
    here = _this_run()
    name, cron = heading_of(path, given.get("overrides") or ())
    if not name and here is not None and here.created_by is not None:
        # A schedule bears its recipe's name; whose path is looked up once the run has begun.
        name = here.created_by.display_value or ""
    return run_name(
        name or "retrain",
        version=None,
        rows=None,
        cause=cause_of(here, cron, str(given.get("reason") or "")),
    )


def this_cause(recipe: str, reason: str) -> str:
    """What started this flow run, in a word or a few. `recipe` is the path of its recipe."""
    return cause_of(_this_run(), heading_of(recipe)[1], reason)


def cause_of(run: FlowRun | None, cron: str | None, reason: str) -> str:
    """`nightly` or so by the recipe's own schedule, what an event tells of itself, or `manual`."""
    if run is None:
        return "manual"
    if AGAIN in run.tags:
        return "after a crash"
    kind = run.created_by.type if run.created_by is not None else None
    if kind == "SCHEDULE":
        return cadence(cron) if cron else "scheduled"
    if kind == "AUTOMATION":
        if known := OF_WATCHED.get(reason.partition(":")[0]):
            return known
        told = " ".join(reason.split())
        return told if 0 < len(told) <= LONGEST_CAUSE else "event"
    return "manual"


def rename_flow_run(run_id: str, name: str) -> None:
    """Give a flow run another name; a server that is away gets it later."""

    def send() -> None:
        with asking_once() as client:
            client.set_flow_run_name(UUID(run_id), name)

    deliver(f"name of {run_id}", f"the name {name!r}", send)
    if (run := _this_run()) is not None and str(run.id) == run_id:
        run.name = name


def _this_run() -> FlowRun | None:
    context = FlowRunContext.get()
    return context.flow_run if context is not None else None
