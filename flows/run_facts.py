"""What a run knows before its first stage: its recipe, its base, and where everything is kept."""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tasks.base import Base, resolve_base
from tasks.files import expanded
from tasks.home import Home, home
from tasks.preflight import check_recipe
from tasks.recipe import Recipe, recipe_digest
from tasks.retention.ledger import done_before
from tasks.start import BASE, CHAMPION, Start, named_start, refuse_own_alias
from tasks.store import Store
from tasks.tracking import Tracker, refuse_unreachable

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrefectRun:
    """The flow run in Prefect; nothing when the flow's function is called without Prefect."""

    id: str | None
    url: str | None
    reason: str = ""
    """Why it is run, as whoever started it says."""
    cause: str = "manual"
    """What started it, as its name tells: `nightly`, `manual`, `512 new rows`."""
    repeats: str | None = None
    """Id of the flow run that crashed, where this one goes on in its stead."""
    attempt: int = 0
    """Counted from 1 by Prefect, for retries of the same run; 0 without Prefect."""


@dataclass(frozen=True)
class RunFacts:
    """Decided when the run begins, and the same to its end."""

    home: Home
    store: Store
    tracker: Tracker
    recipe: Recipe
    recipe_path: Path
    overrides: tuple[str, ...]
    recipe_text: str
    """As it was run, with the overrides as comments, and without absolute paths: it travels far."""
    base: Base
    force: bool
    prefect: PrefectRun
    named_start: Start | None
    """The version that the recipe itself names to start from."""
    forced: dict[str, str] = field(default_factory=dict)
    """With `force`: stage -> fingerprint of what this run made by force before, as in an attempt that an
    outage ended, or in the crashed run that it goes on with."""

    @cached_property
    def recipe_digest(self) -> str:
        """sha256 (hex) of what the recipe means: no comments, no schedule."""
        return recipe_digest(self.recipe)

    @property
    def experiment(self) -> str:
        """The MLflow experiment of the run."""
        return self.recipe.registration.experiment or self.recipe.name


def gather_facts(
    recipe: Path, overrides: tuple[str, ...], force: bool, prefect: PrefectRun
) -> RunFacts:
    """Read the recipe, find its base, and ask whether MLflow is there.

    Raises: RecipeError with every mistake; UserError for a base or a start that cannot be had;
    StageFailed when MLflow does not answer.
    """
    here = home()
    here.prepare()
    path = expanded(recipe).absolute()
    # A deployment's run comes here without the command line's look at things.
    loaded = check_recipe(path, overrides)
    for warning in loaded.warnings:
        _log.warning(warning)
    refuse_unreachable(here)
    base = resolve_base(loaded.recipe.base, path, here)
    tracker = Tracker(here)
    name = loaded.recipe.name
    return RunFacts(
        home=here,
        store=Store.of(here),
        tracker=tracker,
        recipe=loaded.recipe,
        recipe_path=path,
        overrides=overrides,
        recipe_text=_portable(loaded.recipe, _with_overrides(path, overrides)),
        base=base,
        force=force,
        prefect=prefect,
        named_start=_resolved_start(loaded.recipe, base, tracker),
        forced=done_before(here, name, prefect.id, prefect.repeats) if force else {},
    )


def _resolved_start(recipe: Recipe, base: Base, tracker: Tracker) -> Start | None:
    """The version that the recipe names: looked up before anything is made."""
    asked = recipe.training.init_from
    if asked in (BASE, CHAMPION):
        return None
    refuse_own_alias(asked, recipe.model_name)
    return named_start(tracker, asked, base_sha256=base.weights_sha256)


def _portable(recipe: Recipe, text: str) -> str:
    places = [recipe.base.model]
    places += [path for it in recipe.dataset.sources if (path := getattr(it, "path", None))]
    for place in places:
        if place.startswith(("/", "~")):
            text = text.replace(place, Path(place).name)
    return text


def _with_overrides(recipe: Path, overrides: tuple[str, ...]) -> str:
    """The recipe as it was run: its text, read once, and the overrides as comments."""
    text = recipe.read_text(encoding="utf-8")
    return text + "".join(f"# --set {override}\n" for override in overrides)
