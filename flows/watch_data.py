"""Look at a recipe's data between its trainings, and ask for one when enough is new."""

from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.types._datetime import now
from pydantic import Field

from flows.block_secrets import secrets_of
from flows.bridging import bridged_run
from flows.known_trainings import newest_success_and_begun, under_way
from flows.orderly import NotNow, refuse_outdated
from flows.recipe_memory import RecipePath, recipe_of_run
from flows.stack.successes import NOTHING_DUE
from tasks.base import known_commit
from tasks.dataset.task import look_at_sources
from tasks.dataset.watching import Seen, Watch
from tasks.errors import UserError
from tasks.files import expanded
from tasks.home import home
from tasks.recipe import Recipe, load_recipe

EVENT = "loraline.retrain"
"""Whoever posts it starts a training: payload `{"recipe": path on the worker, "reason": text}`."""
SECONDS_BETWEEN = (15, 60)
"""An outage is waited for in short: looks are at work one at a time, and the next of this recipe is due soon."""


def _run_name() -> str:
    return f"{Path(str(flow_run.parameters.get('recipe', ''))).stem} · data"


@flow(name="watch-data", flow_run_name=_run_name, persist_result=False)
def watch_data(
    recipe: RecipePath = "",
    after_new_rows: Annotated[int, Field(ge=1)] | None = None,
    after_days: Annotated[float, Field(gt=0)] | None = None,
) -> State[dict[str, Any]]:
    """Compare a recipe's sources with what was trained last.

    Args:
        recipe: Path of the recipe, as the worker sees it. A schedule's run knows its own.
        after_new_rows: Ask for a training at so many new rows. Default: the recipe's `schedule`.
        after_days: Ask for one when anything changed and the last is so old. Default: the recipe's.

    When a training is due it posts the event `loraline.retrain`, which the automation
    `loraline-retrain-wanted` turns into a run that records the cause. Nobody is asked while the adapter
    is trained or such a run waits: what comes meanwhile is counted when that has ended.
    """
    try:
        recipe = recipe_of_run(recipe)
        # Looks that come slower than they are due would pile up before people's promotions.
        refuse_outdated(recipe)
    except NotNow as other:
        return other.state
    path = expanded(recipe).absolute()
    loaded = load_recipe(path)
    asked = loaded.schedule
    rows = after_new_rows or (asked.after_new_rows if asked else None)
    days = after_days or (asked.after_days if asked else None)
    if rows is None and days is None:
        raise UserError(
            f"{path}: nothing says when new data is enough. Write schedule.after_new_rows or "
            "schedule.after_days, or give the run one of them."
        )
    with secrets_of(path):
        return bridged_run(
            lambda: _looked(path, loaded, rows, days),
            doing=f"look at the data of {loaded.name}",
            seconds=SECONDS_BETWEEN,
        )


def _looked(
    path: Path, loaded: Recipe, rows: int | None, days: float | None
) -> State[dict[str, Any]]:
    here = home()
    here.prepare()
    watch = Watch(here.root / "watch" / loaded.name, here.cache / "sources")
    with watch.alone() as first:
        if not first:
            # It reads much. A worker that waited here would keep promotions waiting.
            return Completed(name="Skipped", message=f"Another look at {loaded.name} is at work.")
        trained_at, begun = newest_success_and_begun(here, loaded.name, path)
        seen = look_at_sources(
            watch,
            loaded.dataset,
            recipe_folder=path.parent,
            after_new_rows=rows,
            after_days=days,
            trained_at=trained_at,
            begun=begun,
            base=None if loaded.base.is_local else known_commit(loaded.base, path),
        )
        busy, asks = None, False
        if seen.cause is not None and (busy := under_way(here, loaded.name, path)) is None:
            kind = "base" if seen.cause.startswith("the base") else "data"
            ask_for_retraining(loaded.name, path, f"{kind}: {seen.cause}")
            # Only now: an event that no server took must be posted again.
            watch.asked()
            asks = True
    data = {"new_rows": seen.new_rows, "asked": asks, "cause": seen.cause}
    quiet = seen.cause is None and seen.asked_at is None
    return Completed(
        name=NOTHING_DUE if quiet else "Completed", message=_told(seen, busy), data=data
    )


def _told(seen: Seen, busy: str | None) -> str:
    if seen.cause is not None:
        return f"{seen.told}. {seen.cause}." + (f" {busy}" if busy else "")
    if seen.asked_at is not None:
        return (
            f"{seen.told}. A training was asked for at {seen.asked_at:%Y-%m-%d %H:%M} UTC, and none that "
            "began since has succeeded; a day later it is asked for again."
        )
    return f"{seen.told}. No training is due."


def ask_for_retraining(name: str, recipe: Path, reason: str) -> None:
    """Post the event. Raises: whatever the client raises when the server does not take it."""
    event = {
        "id": str(uuid4()),
        "occurred": now("UTC").isoformat(),
        "event": EVENT,
        "resource": {"prefect.resource.id": f"loraline.recipe.{name}"},
        "payload": {"recipe": str(recipe), "reason": reason},
    }
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event])
