"""Delete old versions that nothing needs: never one with an alias, one that a rollback needs, or its run."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.errors import UserError
from tasks.promotion.lock import promoting
from tasks.promotion.log import read_log
from tasks.promotion.moving import settle
from tasks.promotion.notices import Notices
from tasks.registry import STARTED_FROM_TAG, aliased_versions, model_id_of, versions_of
from tasks.tracking import Tracker

STEPS_BACK = 3
"""So many of the log's last entries keep the versions that they name: rollbacks go back along them."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """A version that stays, and why."""

    version: str
    why: str


@dataclass(frozen=True)
class Plan:
    """What goes and what stays."""

    name: str
    go: Sequence[str]
    """Oldest first."""
    stay: Sequence[Kept]
    runs: Sequence[str]
    """MLflow runs that go with them: those that no version that stays came from."""


def plan(tracker: Tracker, name: str, *, keep: int) -> Plan:
    """Which versions may go when the newest `keep` stay. Changes nothing.

    Raises: UserError when `keep` is not positive or there is no such model.
    """
    if keep < 1:
        raise UserError(f"--keep {keep}: at least the newest version stays.")
    versions = {str(v.version): v for v in versions_of(tracker, name)}
    if not versions:
        raise UserError(
            f"{name!r} has no versions. `loraline versions` lists the registered models."
        )
    reasons = dict(_reasons(tracker, name, versions, keep))
    order = sorted(versions, key=int)
    go = [number for number in order if number not in reasons]
    staying_runs = {versions[number].run_id for number in reasons}
    runs = {str(versions[number].run_id) for number in go if versions[number].run_id}
    return Plan(
        name=name,
        go=go,
        stay=[Kept(number, reasons[number]) for number in order if number in reasons],
        runs=sorted(runs - staying_runs),
    )


def prune(tracker: Tracker, name: str, *, keep: int, notices: Notices) -> Plan:
    """Delete what `plan` says, planned anew under the lock; the plan that was carried out.

    A kill in the middle leaves versions whose run or files are gone; the next call deletes them, too.
    MLflow only marks runs and files as deleted; `mlflow gc` frees the space.
    """
    with promoting(tracker, name) as held:
        settle(tracker, name, held, notices)
        planned = plan(tracker, name, keep=keep)
        versions = {str(v.version): v for v in versions_of(tracker, name)}
        for number in planned.go:
            held.check()
            # MLflow would take an alias that was set a moment ago along without a word.
            if number in aliased_versions(tracker, name):
                _log.warning("Version %s of %s has an alias by now and stays", number, name)
                continue
            _delete(tracker, versions[number], planned.runs)
    return planned


def _reasons(
    tracker: Tracker, name: str, versions: dict[str, Any], keep: int
) -> Iterator[tuple[str, str]]:
    """Version -> why it stays. The most telling reason comes last, and wins."""
    newest = sorted(versions, key=int)[-keep:]
    yield from ((number, f"one of the newest {keep}") for number in newest)
    # What only looked at a champion again was no step.
    steps = [it.entry for it in read_log(tracker, name) if it.entry is not None]
    entries = [it for it in steps if it.champion_from != it.champion_to][-STEPS_BACK:]
    for entry in entries:
        for number in (
            entry.champion_from,
            entry.champion_to,
            entry.previous_from,
            entry.previous_to,
        ):
            if number in versions:
                yield str(number), f"a rollback may need it (entry {entry.number} of the log)"
    aliases = aliased_versions(tracker, name)
    for number, names in aliases.items():
        yield number, f"alias {', '.join(names)}"
    # What a version was trained on from must stay, as long as that one does.
    staying = {*newest, *aliases, *(str(e.champion_to) for e in entries if e.champion_to)}
    for number in sorted(staying & set(versions), key=int, reverse=True):
        start = str(versions[number].tags.get(STARTED_FROM_TAG) or "")
        model, _, started = start.removeprefix("models:/").partition("/")
        if model == name and started in versions and started not in aliases:
            yield started, f"version {number} started from it"


def _delete(tracker: Tracker, version: Any, runs: Sequence[str]) -> None:
    """The version goes last: as long as it is there, the next call finds what is left to do."""
    from mlflow.exceptions import MlflowException

    name, number = str(version.name), str(version.version)
    steps: list[Callable[[], object]] = []
    if version.run_id in runs:
        steps.append(lambda: tracker.client.delete_run(version.run_id))
    try:
        model_id = model_id_of(version)
        steps.append(lambda: tracker.client.delete_logged_model(model_id))
    except UserError:
        # Not made by loraline: there is nothing but the version.
        pass
    steps.append(lambda: tracker.client.delete_model_version(name, number))
    with tracker.explained(f"delete version {number} of {name!r}"):
        for step in steps:
            try:
                step()
            except MlflowException as error:
                gone = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
                if error.error_code not in gone:
                    raise
                _log.debug("Already gone: %s", error)
    _log.info("Version %s of %s is deleted", number, name)
