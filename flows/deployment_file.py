"""Read `deployments/prefect.yaml`, and refuse what Prefect itself would silently ignore."""

import importlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from flows.pull_steps import mistakes_of_step
from tasks.cron import check_cron, check_timezone
from tasks.errors import UserError
from tasks.settings import Settings
from tasks.share import shared

if TYPE_CHECKING:
    from prefect import Flow

FILE = "prefect.yaml"


class FixedSchedule(Settings):
    """A schedule that belongs to a deployment and to no recipe."""

    slug: str = Field(pattern=r"^[a-z0-9-]+$")
    """By this name it is found again: a changed schedule stays the same one."""
    cron: str | None = None
    interval: float | None = Field(default=None, gt=0)
    """Seconds; instead of `cron`."""
    timezone: str | None = None
    """Of `cron`. Default: UTC."""
    active: bool = True
    """Whether it runs once it is created; afterwards whoever paused it decides."""
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_clock(self) -> "FixedSchedule":
        if (self.cron is None) == (self.interval is None):
            raise ValueError("a schedule has either `cron` or `interval`")
        if self.timezone is not None and self.cron is None:
            raise ValueError(
                "`timezone` changes nothing of an `interval`. Take it away, or write `cron`"
            )
        return self

    @field_validator("cron")
    @classmethod
    def _check_cron(cls, value: str | None) -> str | None:
        if value is not None:
            check_cron(value)
        return value

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str | None) -> str | None:
        if value is not None:
            check_timezone(value)
        return value


class WorkPool(Settings):
    """Whose workers run it."""

    name: str
    job_variables: dict[str, Any] = Field(default_factory=dict)


class Limit(Settings):
    """How many runs of a deployment at once: advice only, the locks of `tasks.turn` are the truth."""

    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"


class Deployment(Settings):
    """One entry of the list `deployments`, with the keys that `prefect deploy` reads too."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    description: str = Field(min_length=1)
    entrypoint: str = Field(pattern=r"^[a-z_][\w.]*\.[a-z_]\w*$")
    """`package.module.function`; a path would put its folder first on `sys.path`."""
    tags: tuple[str, ...] = ()
    parameters: dict[str, Any] = Field(default_factory=dict)
    """What the form in the UI shows before a person writes into it."""
    schedules: tuple[FixedSchedule, ...] = ()
    triggers: tuple[dict[str, Any], ...] = ()
    concurrency_limit: Limit | None = None
    work_pool: WorkPool

    @cached_property
    def flow(self) -> "Flow[..., Any]":
        """The flow behind the entrypoint.

        Raises: UserError when there is none.
        """
        from prefect import Flow

        module, _, name = self.entrypoint.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"deployments.{self.name}: there is no flow {self.entrypoint} ({error})."
            ) from error
        if not isinstance(found, Flow):
            raise UserError(f"deployments.{self.name}: {self.entrypoint} is no Prefect flow.")
        return found

    @cached_property
    def form(self) -> dict[str, Any]:
        """The JSON Schema of the flow's parameters, which Prefect's form is made of."""
        from prefect.utilities.callables import parameter_schema

        schema: dict[str, Any] = parameter_schema(self.flow).model_dump_for_openapi()
        return schema


class DeploymentFile(Settings):
    """The whole file."""

    prefect_version: str = Field(alias="prefect-version")
    name: str
    pull: tuple[dict[str, Any], ...]
    deployments: tuple[Deployment, ...] = Field(min_length=1)

    def deployment(self, name: str) -> Deployment:
        """The deployment of this name, which the file must have."""
        return next(it for it in self.deployments if it.name == name)


def read_deployments(path: Path | None = None) -> DeploymentFile:
    """The checked deployments of `path` (default: the shipped file).

    Raises: UserError with every mistake: an unknown key, a parameter that its flow does not have or
    would refuse, a time that Prefect would not keep, a pull step that no worker could take, a trigger that
    Prefect does not know, a name or a slug that stands there twice.
    """
    path = path or shared("deployments") / FILE
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        file = DeploymentFile.model_validate(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}). Save it in that encoding.") from error
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, it['loc']))}: {it['msg']}" for it in error.errors()]
        raise UserError("\n".join(lines)) from error
    mistakes = [
        f"pull.{number}: {wrong}"
        for number, step in enumerate(file.pull, start=1)
        for wrong in mistakes_of_step(step)
    ]
    if mistakes := mistakes + [wrong for it in file.deployments for wrong in mistakes_of(it)]:
        raise UserError("\n".join(f"{path}: {wrong}" for wrong in mistakes))
    names = [it.name for it in file.deployments]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path}: {', '.join(twice)} stands there twice.")
    return file


def mistakes_of(deployment: Deployment) -> list[str]:
    """Everything in one deployment that does not fit its flow."""
    here = f"deployments.{deployment.name}"
    found = [f"{here}.parameters: {wrong}" for wrong in _misfits(deployment, deployment.parameters)]
    for schedule in deployment.schedules:
        merged = {**deployment.parameters, **schedule.parameters}
        found += [
            f"{here}.schedules.{schedule.slug}: {wrong}"
            for wrong in (*_misfits(deployment, merged), *_missing(deployment, merged))
        ]
    slugs = [schedule.slug for schedule in deployment.schedules]
    if len(set(slugs)) < len(slugs):
        found.append(f"{here}.schedules: a slug stands there twice")
    for number, trigger in enumerate(deployment.triggers, start=1):
        found += [f"{here}.triggers.{number}: {it}" for it in _bad_trigger(deployment, trigger)]
    return found


def _misfits(deployment: Deployment, values: dict[str, Any]) -> list[str]:
    """Names that the flow does not have, and values that its form would refuse."""
    from prefect.utilities.schema_tools.validation import validate

    known = set(deployment.form["properties"])
    unknown = [
        f"{deployment.entrypoint} has no parameter {name!r}; it has {', '.join(sorted(known))}"
        for name in sorted(set(values) - known)
    ]
    errors = validate(values, deployment.form, ignore_required=True)
    return unknown + [f"{error.json_path.removeprefix('$.')}: {error.message}" for error in errors]


def _missing(deployment: Deployment, values: dict[str, Any]) -> list[str]:
    """Nobody fills in the form of a scheduled run."""
    required = deployment.form.get("required", [])
    return [f"nothing gives the parameter {name!r}" for name in required if name not in values]


def _bad_trigger(deployment: Deployment, trigger: dict[str, Any]) -> list[str]:
    from prefect.cli.deploy._triggers import DeploymentTriggerAdapter
    from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger

    allowed = set(DeploymentEventTrigger.model_fields)
    found = [f"unknown key {key!r}" for key in trigger if key not in allowed]
    # Written as templates, its values have no type yet.
    names = set(trigger.get("parameters") or {}) - set(deployment.form["properties"])
    found += [f"{deployment.entrypoint} has no parameter {name!r}" for name in sorted(names)]
    if "name" not in trigger:
        found.append("it needs a `name`, by which it is found again")
    try:
        DeploymentTriggerAdapter.validate_python(dict(trigger))
    except ValidationError as error:
        found += [f"{'.'.join(map(str, it['loc']))}: {it['msg']}" for it in error.errors()]
    return found
