"""Which recipe a schedule runs, kept beside the schedule: Prefect forgets it when somebody pauses the schedule.

Prefect 3.8 takes every change of a schedule, the switch in its pages too, for a change of the schedule's
parameters, and leaves none of them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from pydantic import Field

from flows.server_variables import recall, remember
from flows.stack.recipes import variable_of
from tasks.errors import UserError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

RecipePath = Annotated[
    str,
    Field(
        json_schema_extra={
            "minLength": 1,
            # Pasted with a blank before or behind, no worker would find it.
            "pattern": r"^\S(.*\S)?$",
            "examples": ["recipes/quickstart.yaml"],
        }
    ),
]
"""A path that the form asks for. In the schema only: a schedule's run comes without, and is no mistake.

No choice of the recipes that are scheduled: it would rewrite the deployment whenever one comes or goes, and
Prefect forgets the runs that are due when a deployment is written.
"""


def remember_recipe(client: "SyncPrefectClient", slug: str, recipe: str) -> None:
    """Keep the path of the recipe behind a schedule, and on which device its folder is, as a Prefect variable.

    Nothing is written twice.
    """
    value = {"schedule": slug, "recipe": recipe, "device": device_of(Path(recipe).parent)}
    remember(client, variable_of(slug), value)


def recalled(client: "SyncPrefectClient", slug: str) -> str | None:
    """The path that was remembered for a schedule."""
    return recall(client, variable_of(slug)).get("recipe")


def recalled_device(client: "SyncPrefectClient", slug: str, recipe: str) -> int | None:
    """On which device the folder of a schedule's recipe was when it was deployed; None where nobody knows."""
    there = recall(client, variable_of(slug))
    return there.get("device") if there.get("recipe") == recipe else None


def device_of(folder: Path) -> int | None:
    """The number of the device that a folder is on; None where it cannot be asked."""
    try:
        return folder.stat().st_dev
    except OSError:
        return None


def recipe_of_run(given: str) -> str:
    """The recipe of this flow run: as given, or else the one behind the schedule that created it.

    Raises: UserError when neither is known.
    """
    if given:
        return given
    context = FlowRunContext.get()
    creator = context.flow_run.created_by if context and context.flow_run else None
    if creator is not None and creator.type == "SCHEDULE" and creator.display_value:
        with get_client(sync_client=True) as client:
            if found := recalled(client, creator.display_value):
                return found
        raise UserError(
            f"Nothing is known of a recipe behind the schedule {creator.display_value!r}. "
            "`loraline deploy` gives schedules their recipes."
        )
    raise UserError("No recipe was given: `recipe` is its path, as the worker sees it.")
