"""Which recipe a run or a schedule is about, asked without Prefect's client: the watchdog stays small.

Prefect forgets a schedule's parameters when somebody pauses it; `flows.recipe_memory` keeps the recipe
in a variable, whose name is made here.
"""

import hashlib

from flows.stack.api import Json, PrefectApi
from tasks.errors import StageFailed


def variable_of(slug: str) -> str:
    """The Prefect variable that holds a schedule's recipe: variables take fewer signs than adapters' names."""
    return f"loraline_recipe_{hashlib.sha256(slug.encode()).hexdigest()[:16]}"


def recipe_of_schedule(api: PrefectApi, schedule: Json) -> str | None:
    """The recipe that a schedule of the retraining runs. Raises: StageFailed when Prefect does not answer."""
    given = (schedule.get("parameters") or {}).get("recipe")
    return str(given) if given else _remembered(api, schedule.get("slug"))


def recipe_of_run(
    api: PrefectApi, run: Json, known: dict[str, str | None] | None = None
) -> str | None:
    """The recipe of a flow run: as given, else that of the schedule which created it.

    `known` has what was asked of each schedule, and takes more: Prefect forgets it for all its runs at once.
    Raises: StageFailed when Prefect does not answer.
    """
    if given := (run.get("parameters") or {}).get("recipe"):
        return str(given)
    creator = run.get("created_by") or {}
    slug = creator.get("display_value")
    if creator.get("type") != "SCHEDULE" or not slug:
        return None
    known = {} if known is None else known
    if slug not in known:
        known[slug] = _remembered(api, slug)
    return known[slug]


def _remembered(api: PrefectApi, slug: str | None) -> str | None:
    if not slug:
        return None
    try:
        value = api.ask("GET", f"/variables/name/{variable_of(slug)}")["value"]
    except StageFailed as error:
        if "status 404" not in str(error):
            raise
        return None
    return str(value["recipe"]) if isinstance(value, dict) and value.get("recipe") else None
