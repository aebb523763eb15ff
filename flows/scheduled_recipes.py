"""Which schedules the recipes on this machine ask for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import LoralineError, UserError
from tasks.files import expanded
from tasks.recipe import load_recipe
from tasks.recipe_file import read_document

RETRAIN, WATCH = "retrain", "watch-data"
"""The deployments that recipes have schedules of: by the clock, and by the data."""


@dataclass(frozen=True)
class Wanted:
    """What one recipe asks for."""

    name: str
    """The adapter's; also the schedule's slug."""
    path: Path
    """Absolute: the worker runs elsewhere."""
    cron: str | None = None
    timezone: str = "UTC"
    watched: bool = False

    @property
    def unwanted(self) -> bool:
        """Whether the recipe has no section `schedule`."""
        return self.cron is None and not self.watched


def recipe_files(places: Sequence[Path]) -> list[Path]:
    """The files among `places` and those of its folders (`*.yaml`, `*.yml`, below them too), absolute.

    What is hidden in a folder is no recipe: editors keep copies there (`.ipynb_checkpoints`).

    Raises: UserError for a place that is not there.
    """
    found: dict[Path, None] = {}
    for place in places:
        if not place.exists():
            raise UserError(f"There is no recipe and no folder {place}.")
        inside = sorted(place.rglob("*.y*ml")) if place.is_dir() else [place]
        found.update(dict.fromkeys(path.absolute() for path in inside if not _hidden(path, place)))
    return list(found)


def _hidden(path: Path, folder: Path) -> bool:
    """Whether the path is below the folder, and hidden there; the folder itself may lie where it wants."""
    below = path.relative_to(folder).parts if path.is_relative_to(folder) else ()
    return any(part.startswith(".") for part in below)


def scheduled(path: Path, *, named: bool) -> Wanted | None:
    """What the recipe asks for; None for a file of a folder that has no section `schedule`.

    Such a file is not looked at any further: a folder may hold drafts. A recipe that a person named
    is, whatever it has.

    Raises: RecipeError for a recipe that is wrong: it would fail each night.
    """
    document = read_document(path)
    if not document.data.get("schedule") and not named:
        name = document.data.get("name")
        return Wanted(name, path) if isinstance(name, str) else None
    recipe = load_recipe(path)
    if recipe.schedule is None:
        return Wanted(recipe.name, path)
    return Wanted(
        recipe.name,
        path,
        recipe.schedule.cron,
        recipe.schedule.timezone,
        recipe.schedule.watches,
    )


def _may_be_unmounted(folders: Sequence[Path], path: Path, device: int | None) -> bool:
    """Whether the file's folder may be on a disk that is not mounted, or lie where we may not look."""
    folder = path.parent.resolve()
    there = next(it for it in (folder, *folder.parents) if it.is_dir())
    if path.is_symlink() or (not any(there.iterdir()) and there.stat().st_dev != device):
        return True
    return there != folder and not any(there.is_relative_to(it.resolve()) for it in folders)


def gone_for_good(
    path: Path, slug: str, folders: Sequence[Path] = (), device: int | None = None
) -> str | None:
    """Why a schedule's recipe wants it no more; None while it does, or while nobody can tell.

    A file that is away together with its folder may lie on a disk that is not mounted, and another user's
    home may be closed to us. Not so where the folder lay in one of `folders`. The place of a disk that is not
    mounted is empty: a folder that is counts only where it is on `device`, as when the schedule was made.
    What is hidden in one of `folders` is no recipe of it.
    """
    try:
        if not path.is_file():
            return None if _may_be_unmounted(folders, path, device) else f"{path} is gone"
        if any(_hidden(path, folder) for folder in folders):
            return f"{path} is hidden"
        now = scheduled(path, named=False)
    except (LoralineError, OSError, ValueError):
        return None
    if now is None or now.unwanted:
        return f"{path} has no section `schedule` any more"
    return f"{path} is named {now.name!r} now" if now.name != slug else None


def is_away(path: Path, folders: Sequence[Path]) -> bool:
    """Whether the file should be in one of `folders` and cannot be read there."""
    try:
        return any(path.is_relative_to(it) for it in folders) and not path.is_file()
    except OSError:
        return False


def chosen_recipes(names: Sequence[str], folder: Path) -> Iterator[Path]:
    """The recipes of a command line, absolute; without any, the folder `recipes` of the working folder.

    Raises: UserError when there is neither.
    """
    if names:
        yield from (expanded(name).absolute() for name in names)
        return
    if not (folder / "recipes").is_dir():
        raise UserError(
            f"There is no folder {folder / 'recipes'}. Name the recipes to schedule, or run "
            "`loraline init`."
        )
    yield folder / "recipes"
