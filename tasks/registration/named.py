"""What `models:/NAME@ALIAS`, `models:/NAME/VERSION` and `models:/m-<id>` name, and its files as they were registered."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import StageFailed, UserError
from tasks.registration.listing import list_versions
from tasks.registry import model_files, model_id_of, version_at
from tasks.tracking import Tracker
from tasks.version_manifest import Checked, check_files


@dataclass(frozen=True)
class Named:
    """The logged model that an address names, and what the registry says of it."""

    model_id: str
    tags: Mapping[str, str]
    """Of the version; empty for a model that is none yet."""


def check_registered(tracker: Tracker, uri: str) -> None:
    """See that the registry has the version before a process is started for it.

    Raises: UserError naming what there is instead.
    """
    name, _, alias = uri.removeprefix("models:/").partition("@")
    name, _, number = name.partition("/")
    if not alias and not number:
        return
    listed = list_versions(tracker, name)
    here = [e for e in listed if (alias in e.aliases if alias else e.version == number)]
    if not here:
        has = ", ".join(f"{e.version} ({', '.join(e.aliases) or 'no alias'})" for e in listed[:10])
        raise UserError(
            f"{uri}: {name!r} has no {f'alias {alias!r}' if alias else f'version {number}'}. "
            f"Its versions: {has or 'none'}."
        )


def registered_at(tracker: Tracker, uri: str) -> Named:
    """The model behind an address.

    Raises: UserError when there is no such version.
    """
    name = uri.removeprefix("models:/")
    if "/" not in name and "@" not in name:
        return Named(name, {})
    version = version_at(tracker, uri)
    return Named(model_id_of(version), version.tags)


@contextmanager
def registered_files(tracker: Tracker, uri: str) -> Iterator[tuple[Path, Checked]]:
    """The model's folder on this machine, once every file in it is known to be as it was registered.

    To be asked before anything of the version is executed: loading it runs its own code.

    Raises: UserError when there is no such version; StageFailed naming the files that are not as
    they were registered.
    """
    named = registered_at(tracker, uri)
    with model_files(tracker, named.model_id, tracker.home) as model:
        found = check_files(model, named.tags)
        refuse(uri, found.wrong)
        yield model, found


def refuse(uri: str, wrong: Sequence[str]) -> None:
    """Raises: StageFailed when anything is wrong with the version's files."""
    if wrong:
        raise StageFailed(
            f"{uri} is not what was registered: {'; '.join(wrong)}. Restore MLflow's artifact store, or name "
            "another version."
        )
