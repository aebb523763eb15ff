"""Apply the deployments and the recipes' schedules to a Prefect server; what is as it should be is not touched.

Not touching matters: Prefect deletes the runs that are planned whenever a deployment or one of its schedules
is written, and plans them again only a minute later.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.deployment_file import Deployment, DeploymentFile, read_deployments
from flows.fixed_schedules import apply_fixed
from flows.notifying import apply_notifications, essence
from flows.recipe_memory import recalled_device
from flows.retired_schedules import delete_retired, retire
from flows.scheduled_recipes import (
    RETRAIN,
    WATCH,
    Wanted,
    gone_for_good,
    is_away,
    recipe_files,
    scheduled,
)
from flows.server_schedules import Target, by_slug, clock_of, put, recipe_behind, schedules_of
from tasks.errors import LoralineError
from tasks.home import Home
from tasks.outage import is_outage
from tasks.store import digest

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.responses import DeploymentResponse

WATCH_SECONDS = 900.0
"""How often the data of a recipe is looked at."""


@dataclass
class Applied:
    """What `apply_deployments` did."""

    changed: list[str] = field(default_factory=list)
    """A line for each thing that was created, changed or retired; empty when all was as it should be."""
    problems: list[str] = field(default_factory=list)
    """Why a recipe could not be scheduled, or nobody told by a block; what there was before stays."""
    schedules: int = 0
    """Recipes that the clock starts now."""

    def note(self, line: str | None) -> None:
        """Add a line, if there is one."""
        if line is not None:
            self.changed.append(line)


def apply_deployments(
    home: Home,
    recipes: Sequence[Path],
    *,
    away: Sequence[Path] = (),
    file: DeploymentFile | None = None,
) -> Applied:
    """Make the deployments and the schedules of `recipes` what the files say.

    A folder among `recipes` stands for all recipes in it, and then schedules of recipes that are gone
    or want none any more are retired, wherever those lie; otherwise only those of the named recipes are
    touched. Of folders that are `away` the schedules stay, and are named. Whether a schedule is paused is never
    changed, also where its recipe bears another name now.
    The server is the one of this process's environment (`flows.standing_server`); `home` is prepared for it.

    Raises: UserError when the shipped deployments do not fit their flows; StageFailed when the server
    refuses.
    """
    from prefect.client.orchestration import get_client

    home.prepare()
    file = file or read_deployments()
    applied = Applied()
    wanted = _wanted(recipes, applied)
    folders = [*(path for path in recipes if path.is_dir()), *away]
    refused: set[str] = set()
    with get_client(sync_client=True) as client:
        wanted = _not_anothers(client, wanted, folders, applied)
        for deployment in file.deployments:
            identity = _deploy(client, file, deployment, applied)
            delete_retired(client, identity)
            applied.changed += apply_fixed(client, deployment, identity)
            _apply_triggers(client, deployment, identity, applied)
            if deployment.name in (RETRAIN, WATCH):
                refused |= _apply_recipes(client, deployment, identity, wanted, folders, applied)
        changed, problems = apply_notifications(client, os.environ)
    applied.changed += changed
    applied.problems += problems
    applied.schedules = sum(it.cron is not None for it in wanted if it.name not in refused)
    return applied


def _wanted(recipes: Sequence[Path], applied: Applied) -> list[Wanted]:
    """What each recipe asks for; of two with one name none, for one adapter has one schedule."""
    found: list[Wanted] = []
    for path in recipe_files(recipes):
        try:
            if (one := scheduled(path, named=path in recipes)) is not None:
                found.append(one)
        except LoralineError as error:
            applied.problems.append(str(error))
        except Exception as error:
            # A file that cannot be read stops no other.
            applied.problems.append(f"{path}: {_in_a_line(error)}")
    kept = []
    for one in found:
        rivals = [it.path for it in found if it.name == one.name and not it.unwanted]
        if len(rivals) > 1 and not one.unwanted:
            others = ", ".join(str(path) for path in rivals if path != one.path)
            applied.problems.append(
                f"{one.path}: name: {one.name!r} is also scheduled by {others}. An adapter has one "
                "schedule: give one of them another `name`, or take its section `schedule` away."
            )
        else:
            kept.append(one)
    return kept


def _not_anothers(
    client: "SyncPrefectClient", wanted: list[Wanted], folders: Sequence[Path], applied: Applied
) -> list[Wanted]:
    """Without those whose schedule on the server is of another recipe, which lies elsewhere and wants it still."""
    there = {
        schedule.slug: recipe_behind(client, schedule)
        for name in (RETRAIN, WATCH)
        for _, schedule in schedules_of(client, name)
    }
    kept = []
    for one in wanted:
        other = Path(there.get(one.name) or one.path)
        try:
            rival = other.is_file() and not other.samefile(one.path)
        except OSError:
            # It lies where we may not look, as in another user's home.
            rival = True
        if one.unwanted or not rival or gone_for_good(other, one.name, folders):
            kept.append(one)
        else:
            applied.problems.append(
                f"{one.path}: name: {one.name!r} is scheduled already, by {other}. An adapter has one "
                "schedule, which stays as it is: give one of the two recipes another `name`, or delete "
                f"{other}, or its section `schedule`; then deploy again."
            )
    return kept


def _deploy(
    client: "SyncPrefectClient", file: DeploymentFile, deployment: Deployment, applied: Applied
) -> "UUID":
    from prefect.client.schemas.actions import DeploymentUpdate
    from prefect.exceptions import ObjectNotFound

    _ensure_pool(client, deployment.work_pool.name, applied)
    pool = deployment.work_pool
    limit = deployment.concurrency_limit
    values: dict[str, Any] = {
        "description": deployment.description,
        "tags": sorted(deployment.tags),
        "entrypoint": deployment.entrypoint,
        "parameters": deployment.parameters,
        "parameter_openapi_schema": deployment.form,
        "pull_steps": list(file.pull),
        "work_pool_name": pool.name,
        "job_variables": pool.job_variables,
        "enforce_parameter_schema": True,
        "concurrency_limit": limit and limit.limit,
        "concurrency_options": limit and {"collision_strategy": limit.collision_strategy},
    }
    flow = deployment.flow
    try:
        there = client.read_deployment_by_name(f"{flow.name}/{deployment.name}")
    except ObjectNotFound:
        identity = client.create_deployment(client.create_flow(flow), deployment.name, **values)
        applied.changed.append(f"deployment {deployment.name}: created")
        return identity
    differing = [name for name, value in values.items() if _shown(there, name) != value]
    if differing:
        client.update_deployment(there.id, DeploymentUpdate.model_validate(values))
        applied.changed.append(f"deployment {deployment.name}: {', '.join(differing)} changed")
    return there.id


def _shown(there: "DeploymentResponse", name: str) -> Any:
    """A field of the server's as `_deploy` writes it."""
    if name == "concurrency_limit":
        limit = there.global_concurrency_limit
        return limit.limit if limit else None
    if name == "concurrency_options":
        options = there.concurrency_options
        return options.model_dump(mode="json", exclude_none=True) if options else None
    if name == "tags":
        return sorted(there.tags)
    return getattr(there, name)


def _ensure_pool(client: "SyncPrefectClient", name: str, applied: Applied) -> None:
    """Create a process pool of this name if there is none; one of another type is left as it is."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        client.read_work_pool(name)
        return
    except ObjectNotFound:
        pass
    template = ProcessWorker.get_default_base_job_template()
    # Somebody else may just have created it.
    with contextlib.suppress(ObjectAlreadyExists):
        client.create_work_pool(
            WorkPoolCreate(name=name, type="process", base_job_template=template)
        )
        applied.changed.append(f"work pool {name}: created, of type process")


def _apply_recipes(
    client: "SyncPrefectClient",
    deployment: Deployment,
    identity: "UUID",
    wanted: list[Wanted],
    folders: Sequence[Path],
    applied: Applied,
) -> set[str]:
    """Returns the names of the recipes whose schedules could not be applied."""
    refused: set[str] = set()
    there = by_slug(client, identity)
    fixed = {schedule.slug for schedule in deployment.schedules}
    # One that a person made in the UI names no recipe that we know of.
    recipe_of = {
        slug: recipe_behind(client, schedule)
        for slug, schedule in there.items()
        if slug not in fixed
    }
    for one in wanted:
        target = Target(deployment.name, identity, one.name)
        former = [there[slug] for slug in there if recipe_of.get(slug) == str(one.path)]
        active = all(schedule.active for schedule in former)
        try:
            _apply_recipe(client, target, one, there, applied, active=active)
        except Exception as error:
            if is_outage(error):
                raise
            # One recipe that Prefect does not take stops no other, and keeps what it had.
            there.pop(one.name, None)
            refused.add(one.name)
            applied.problems.append(
                f"{one.path}: Prefect takes no {target} ({_in_a_line(error)}). Correct the recipe's section "
                "`schedule`, then deploy again."
            )
    named = {str(one.path) for one in wanted if one.name not in refused}
    for slug, schedule in there.items():
        path = recipe_of.get(slug) if folders or recipe_of.get(slug) in named else None
        if not path:
            continue
        device = recalled_device(client, slug, path)
        if why := gone_for_good(Path(path), slug, folders, device):
            applied.note(retire(client, Target(deployment.name, identity, slug), schedule, why))
        elif is_away(Path(path), folders):
            applied.problems.append(
                f"{path} is away with its folder, as if a disk was not mounted: each of its runs will fail, and "
                f"its schedule stays. Bring it back, or delete the schedule {slug} on the page of the deployment "
                f"{deployment.name}; then deploy again."
            )
    return refused


def _apply_recipe(
    client: "SyncPrefectClient",
    target: Target,
    one: Wanted,
    there: "dict[str, DeploymentSchedule]",
    applied: Applied,
    *,
    active: bool,
) -> None:
    """Create (`active` or paused), change or retire the recipe's schedule; what is dealt with is taken out of
    `there`.
    """
    clock = _recipe_clock(one, target.deployment)
    found = there.get(one.name)
    if clock is not None:
        there.pop(one.name, None)
        applied.note(put(client, target, found, clock, {"recipe": str(one.path)}, active=active))
    elif found is not None and recipe_behind(client, found) == str(one.path):
        # A draft elsewhere may bear the name of a recipe that is scheduled.
        del there[one.name]
        applied.note(retire(client, target, found, f"{one.path} asks for none"))


def _in_a_line(error: Exception) -> str:
    """A library's words, which may fill a page, for a list of problems."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _recipe_clock(one: Wanted, deployment: str) -> Any:
    """When the recipe's schedule of this deployment is due; None where it wants none."""
    if deployment == WATCH:
        # Each at a moment of its own: all looks in one second would wait for each other.
        shift = int(digest(one.name), 16) % int(WATCH_SECONDS)
        anchor = datetime.fromtimestamp(shift, UTC)
        return clock_of(seconds=WATCH_SECONDS, anchor=anchor) if one.watched else None
    return clock_of(cron=one.cron, timezone=one.timezone) if one.cron is not None else None


def _apply_triggers(
    client: "SyncPrefectClient", deployment: Deployment, identity: "UUID", applied: Applied
) -> None:
    """The automations that start a deployment for an event, each found again by its name."""
    from prefect.cli.deploy._triggers import DeploymentTriggerAdapter

    for entry in deployment.triggers:
        trigger = DeploymentTriggerAdapter.validate_python(dict(entry))
        trigger.set_deployment_id(identity)
        wanted = trigger.as_automation()
        there = next(iter(client.read_automations_by_name(wanted.name)), None)
        if there is None:
            client.create_automation(wanted)
            applied.changed.append(f"automation {wanted.name}: created")
        elif essence(there) != essence(wanted):
            # Switched off by an operator, it stays off.
            client.update_automation(there.id, wanted.model_copy(update={"enabled": there.enabled}))
            applied.changed.append(f"automation {wanted.name}: changed")
