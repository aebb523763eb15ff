"""Look at a recipe's data between its trainings, and ask for one when enough is new."""

from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.types._datetime import now

from flows.block_secrets import secrets_of
from flows.recipe_memory import RecipePath, recipe_of_run
from tasks.base import known_commit
from tasks.dataset.task import look_at_sources
from tasks.dataset.watching import Watch
from tasks.errors import UserError
from tasks.home import home
from tasks.recipe import load_recipe
from tasks.retention.ledger import newest_success

EVENT = "loraline.retrain"
"""Whoever posts it starts a training: payload `{"recipe": path on the worker, "reason": text}`."""


def _run_name() -> str:
    return f"{Path(str(flow_run.parameters.get('recipe', ''))).stem} · data"


@flow(name="watch-data", flow_run_name=_run_name, persist_result=False)
def watch_data(
    recipe: RecipePath = "",
    after_new_rows: int | None = None,
    after_days: float | None = None,
) -> State[dict[str, Any]]:
    """Compare a recipe's sources with what was trained last.

    Args:
        recipe: Path of the recipe, as the worker sees it. A schedule's run knows its own.
        after_new_rows: Ask for a training at so many new rows. Default: the recipe's `schedule`.
        after_days: Ask for one when anything changed and the last is so old. Default: the recipe's.

    When a training is due it posts the event `loraline.retrain`, which the automation
    `loraline-retrain-wanted` turns into a run that records the cause. The same rows ask once.
    """
    path = Path(recipe_of_run(recipe)).expanduser().absolute()
    loaded = load_recipe(path)
    asked = loaded.schedule
    rows = after_new_rows or (asked and asked.after_new_rows)
    days = after_days or (asked and asked.after_days)
    if rows is None and days is None:
        raise UserError(
            f"{path}: nothing says when new data is enough. Write schedule.after_new_rows or "
            "schedule.after_days, or give the run one of them."
        )
    here = home()
    here.prepare()
    watch = Watch(here.root / "watch" / loaded.name, here.cache / "sources")
    with secrets_of(path):
        seen = look_at_sources(
            watch,
            loaded.dataset,
            recipe_folder=path.parent,
            after_new_rows=rows,
            after_days=days,
            trained_at=newest_success(here, loaded.name),
            base=None if loaded.base.is_local else known_commit(loaded.base, path),
        )
    if seen.cause is not None:
        kind = "base" if seen.cause.startswith("the base") else "data"
        ask_for_retraining(loaded.name, path, f"{kind}: {seen.cause}")
        # Only now: an event that no server took must be posted again.
        watch.asked(seen)
    data = {"new_rows": seen.new_rows, "asked": seen.cause is not None, "cause": seen.cause}
    return Completed(message=f"{seen.told}. {seen.cause or 'No training is due.'}", data=data)


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
