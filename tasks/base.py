"""Find the base model: a local folder, or a Hub id pinned to a commit; and its sha256."""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base_folder import (
    TOKENIZER_FILES,
    WEIGHT_FILES,
    files_problem,
    folder_problem,
    weight_files,
)
from tasks.errors import BaseModelError
from tasks.files import expanded
from tasks.home import Home
from tasks.settings import Settings

_COMMIT = re.compile(r"[0-9a-f]{40}")
_log = logging.getLogger(__name__)


class BaseSettings(Settings):
    """The base model that adapters are trained on."""

    model: str
    """A local folder (relative to the recipe: `./x`, `../x`, or absolute) or a Hub id such as `microsoft/Phi-3-mini-4k-instruct`."""
    revision: str = "main"
    """Branch, tag or commit of a Hub id. Resolved to a commit at first use and kept in the lock file."""

    @property
    def is_local(self) -> bool:
        """Whether `model` names a folder."""
        return looks_local(self.model)


def looks_local(model: str) -> bool:
    """Whether a base, as a recipe names it, is a folder and no Hub id."""
    return model.startswith((".", "/", "~"))


@dataclass(frozen=True)
class Base:
    """A base model on this machine."""

    path: Path
    model: str
    """As the recipe names it."""
    commit: str | None
    """The Hub commit; None for a local folder."""
    weights_sha256: str
    """Over config.json and the safetensors files: what an adapter must be put on."""
    tokenizer_sha256: str
    """Over the tokenizer's files, the chat template and the generation config."""

    @property
    def shown(self) -> str:
        """As the recipe names it, without the folders above an absolute path: they differ between machines."""
        if self.commit is None and self.model.startswith(("/", "~")):
            return self.path.name
        return self.model


def lock_path(recipe: Path) -> Path:
    """`recipes/a.yaml` -> `recipes/a.lock`."""
    return recipe.with_suffix(".lock")


def resolve_base(settings: BaseSettings, recipe: Path, home: Home, *, update: bool = False) -> Base:
    """The base on this machine, downloaded if need be and hashed (remembered while files are unchanged).

    Raises: BaseModelError when it cannot be had, is incomplete, or holds no safetensors.
    """
    # Validating a recipe imports this module for its settings alone; hashing comes with the store.
    from tasks.hash_memory import HashMemory
    from tasks.hub import snapshot
    from tasks.store import digest

    commit = None
    if settings.is_local:
        folder = local_folder(settings, recipe)
        if problem := folder_problem(folder):
            raise BaseModelError(f"{recipe}: base {settings.model} {problem}")
    else:
        commit = locked_commit(settings, recipe, update=update, home=home)
        folder = snapshot(settings.model, commit, [*WEIGHT_FILES, *TOKENIZER_FILES])
        if problem := files_problem(folder):
            raise BaseModelError(f"Base model {settings.model} ({folder}) {problem}")
    weights = weight_files(folder)
    tokenizer = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    memory = HashMemory(home.cache / "sha256.json")
    base = Base(
        path=folder,
        model=settings.model,
        commit=commit,
        weights_sha256=digest([[p.name, memory.sha256(p)] for p in weights]),
        tokenizer_sha256=digest([[p.name, memory.sha256(p)] for p in tokenizer]),
    )
    memory.save()
    return base


def locked_commit(
    settings: BaseSettings, recipe: Path, *, update: bool = False, home: Home | None = None
) -> str:
    """The commit in the recipe's lock file; resolved on the Hub and written there at first use.

    Only `update` replaces what a lock says. Where it pins another model or revision than is asked
    for, as in a run with `--set base=...`, it stays as it is, and the commit is kept in `home`.
    Raises: BaseModelError when the commit must be resolved and the Hub does not answer, or, without
    `home`, when the lock pins another model or revision.
    """
    from tasks.hub import commit_of

    if _COMMIT.fullmatch(settings.revision):
        return settings.revision
    path = lock_path(recipe)
    if path.is_file() and not update:
        entry = read_lock(path, recipe)
        if entry.get("model") == settings.model and entry.get("revision") == settings.revision:
            return str(entry["commit"])
        return _commit_beside_lock(settings, recipe, entry, home)
    _refuse_bare_folder(settings, recipe)
    commit = commit_of(settings.model, settings.revision)
    _write_lock(path, recipe, settings, commit)
    return commit


def known_commit(settings: BaseSettings, recipe: Path) -> str | None:
    """The commit that the recipe or its lock names, without asking anybody; None where neither does.

    Raises: BaseModelError for a lock file that is none.
    """
    if _COMMIT.fullmatch(settings.revision):
        return settings.revision
    if not (path := lock_path(recipe)).is_file():
        return None
    entry = read_lock(path, recipe)
    if entry.get("model") == settings.model and entry.get("revision") == settings.revision:
        return str(entry["commit"])
    return None


def read_lock(path: Path, recipe: Path) -> dict[str, Any]:
    """The lock file's entry: `model`, `revision`, `commit`. Raises: BaseModelError when it is none."""
    import yaml

    try:
        entry = yaml.safe_load(path.read_text(encoding="utf-8"))["base"]
        if not isinstance(entry, dict) or not _COMMIT.fullmatch(str(entry["commit"])):
            raise ValueError("no commit of 40 hexadecimal digits")
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        what = " ".join(str(error).split()) or error.__class__.__name__
        raise BaseModelError(
            f"{path}: is not a lock file of loraline ({what}). Take it back from version control, "
            f"or resolve the base anew with `loraline lock {recipe} --update`."
        ) from error
    return entry


def local_folder(settings: BaseSettings, recipe: Path) -> Path:
    """The folder that a local base names, whether it exists or not."""
    return (recipe.parent / expanded(settings.model)).resolve()


def bare_folder_problem(settings: BaseSettings, recipe: Path) -> str | None:
    """`models/phi` reads as a Hub id; who has such a folder meant the folder. In the words after its name."""
    for start in (recipe.parent, Path()):
        folder = start / settings.model
        if (folder / "config.json").is_file():
            near = os.path.relpath(folder.resolve(), recipe.parent.resolve())
            way_out = near if near.startswith(".") else f"./{near}"
            return (
                "reads as a Hub id, and there is a model folder of "
                f"that name. For the folder write `base: {way_out}` (relative to the recipe); for the "
                "Hub's model rename the folder."
            )
    return None


def _commit_beside_lock(
    settings: BaseSettings, recipe: Path, entry: dict[str, Any], home: Home | None
) -> str:
    """The commit of a base that the recipe's lock is not about; the lock is somebody's commit."""
    asked = f"{settings.model}@{settings.revision}"
    pinned = f"{entry.get('model')}@{entry.get('revision')}"
    if home is None:
        raise BaseModelError(
            f"{lock_path(recipe)} pins {pinned}, and the base asked for is {asked}. "
            f"`loraline lock {recipe} --update` (with the same --set, if there is one) replaces it."
        )
    from tasks.commit_memory import memory_path, remembered_commit

    _refuse_bare_folder(settings, recipe)
    commit = remembered_commit(settings, home)
    _log.warning(
        "%s pins %s, and this run uses %s at commit %s, which is kept in %s; the lock stays as it is. "
        "If that is to be the recipe's base, run `loraline lock %s --update`.",
        lock_path(recipe),
        pinned,
        asked,
        commit,
        memory_path(home),
        recipe,
    )
    return commit


def _refuse_bare_folder(settings: BaseSettings, recipe: Path) -> None:
    if problem := bare_folder_problem(settings, recipe):
        raise BaseModelError(f"{recipe}: base {settings.model} {problem}")


def _write_lock(path: Path, recipe: Path, settings: BaseSettings, commit: str) -> None:
    import yaml

    entry = {"model": settings.model, "revision": settings.revision, "commit": commit}
    text = (
        f"# Commit this file: it pins the base of {recipe.name}. "
        f"`loraline lock {recipe.name} --update` moves it.\n"
    ) + yaml.safe_dump({"base": entry}, sort_keys=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise BaseModelError(
            f"{path}: cannot be written ({error.strerror}), so the commit of {settings.model} would "
            f"not stay the same from run to run. Make the folder writable, run `loraline lock "
            f"{recipe.name}` where it is and commit the file, or write `revision: {commit}`."
        ) from error
