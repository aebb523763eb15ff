"""Move the aliases of a model so that a kill at any step leaves nothing, or what the next call completes.

The order, with the lock held: the entry is written to the log (not done yet), the version gets its
record, `previous` and `champion` are moved, the model notes the newest entry, the notices are put into
the outbox, the entry is marked as done. Each step can be repeated without harm; `settle` repeats them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.errors import StageFailed
from tasks.promotion import log
from tasks.promotion.chain import sound_end
from tasks.promotion.entry import MOVES, TOLD, Entry, new_id, now
from tasks.promotion.lock import Held
from tasks.promotion.log import Logged
from tasks.promotion.notices import Notices
from tasks.registry import CHAMPION, PREVIOUS, PROMOTED_AT, PROMOTED_BY
from tasks.tracking import Tracker

PROMOTED_WHY = "loraline.promotion_reason"
PROMOTED_FROM = "loraline.promoted_from"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Aliases:
    """Which versions the two aliases name now."""

    champion: str | None
    previous: str | None


@dataclass(frozen=True)
class Log:
    """The log after `settle`: its end is sound, and every entry in it is done."""

    entries: Sequence[Logged]

    @property
    def last(self) -> Entry | None:
        """The newest entry."""
        return self.entries[-1].entry if self.entries else None

    @property
    def champion(self) -> str | None:
        """The champion as the log has it."""
        return self.last.champion_to if self.last else None

    @property
    def looked(self) -> Entry | None:
        """The newest entry that is about the champion, and came about: whether that one loads."""
        withdrawn = {it.entry.withdraws for it in self.entries if it.entry}
        for logged in reversed(self.entries):
            entry = logged.entry
            if entry is None or entry.kind in ("withdrawn", "accepted"):
                continue
            if entry.number not in withdrawn:
                return entry
        return None

    def came_from(self, version: str) -> Entry | None:
        """The newest entry that made the version champion, and came about."""
        withdrawn = {it.entry.withdraws for it in self.entries if it.entry}
        for logged in reversed(self.entries):
            entry = logged.entry
            if entry is None or entry.kind == "withdrawn" or entry.number in withdrawn:
                continue
            if entry.champion_to == version and entry.champion_from != version:
                return entry
        return None

    def next(self, **fields: Any) -> Entry:
        """The entry after the last one, bound to it."""
        last = self.last
        return Entry(
            number=1 if last is None else last.number + 1,
            # The hash that was checked, and not one that this version of the model would give.
            before=None if last is None else self.entries[-1].content_hash,
            id=new_id(),
            at=now(),
            **fields,
        )


def aliases_of(tracker: Tracker, name: str) -> Aliases:
    """Champion and previous as the registry has them now; both None for an unknown name."""
    from mlflow.exceptions import MlflowException

    with tracker.explained(f"read the aliases of {name!r}"):
        try:
            aliases = tracker.client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return Aliases(None, None)
            raise
    champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
    return Aliases(
        None if champion is None else str(champion), None if previous is None else str(previous)
    )


def settle(tracker: Tracker, name: str, held: Held, notices: Notices) -> Log:
    """Complete what a killed process began; to be called with the lock held, before anything is read.

    An entry whose champion somebody else moved meanwhile is withdrawn by an entry of its own.

    Raises: StageFailed when the log's end is not what was written: an entry bound to it would hide that.
    """
    entries = _sound(tracker, name)
    last = entries[-1] if entries else None
    if last is None or last.done or last.entry is None:
        return Log(entries)
    entry = last.entry
    current = aliases_of(tracker, name).champion
    as_told = current in (entry.champion_from, entry.champion_to)
    if entry.kind not in MOVES or (as_told and _exists(tracker, entry)):
        _log.info("Completing entry %s of %s, which a killed process began", entry.number, name)
        _complete(tracker, last, held, notices)
        return Log(_sound(tracker, name))
    why = (
        f"the champion is {f'version {current}' if current else 'gone'} by now, moved by somebody else"
        if not as_told
        else f"version {entry.champion_to} was deleted"
    )
    withdrawal = Log(entries).next(
        kind="withdrawn",
        name=name,
        champion_from=entry.champion_from,
        champion_to=entry.champion_from,
        previous_from=entry.previous_from,
        previous_to=entry.previous_from,
        actor=entry.actor,
        reason=f"Entry {entry.number} was begun and its process ended before it was complete; {why}.",
        withdraws=entry.number,
    )
    held.check()
    written = log.append(tracker, withdrawal)
    # Before the other one is done: what the model knows may not stay behind what is.
    log.set_head(tracker, withdrawal)
    log.close(tracker, last)
    _complete(tracker, written, held, notices)
    return Log(_sound(tracker, name))


def carry_out(tracker: Tracker, entry: Entry, held: Held, notices: Notices) -> None:
    """Write the entry and do what it says."""
    held.check()
    _complete(tracker, log.append(tracker, entry), held, notices)


def _sound(tracker: Tracker, name: str) -> Sequence[Logged]:
    return sound_end(log.read_log(tracker, name), log.read_head(tracker, name), name)


def _complete(tracker: Tracker, logged: Logged, held: Held, notices: Notices) -> None:
    entry, client = logged.entry, tracker.client
    assert entry is not None
    name = entry.name
    log.show_columns(tracker, logged)
    if entry.kind not in ("withdrawn", "accepted"):
        with tracker.explained(f"carry out entry {entry.number} of the log of {name!r}"):
            # The record first: an alias without its reason would be worse than a reason without alias.
            _record(client, entry)
            held.check()
            if entry.previous_to != entry.previous_from:
                _point(client, name, PREVIOUS, entry.previous_to)
            if entry.kind in MOVES:
                _point(client, name, CHAMPION, entry.champion_to)
    log.set_head(tracker, entry)
    if entry.kind in TOLD:
        notices.put(entry)
    # Written last: its end means that everything above has happened.
    log.close(tracker, logged)
    _log.info("%s: %s", name, entry.title)


def _record(client: Any, entry: Entry) -> None:
    from mlflow.exceptions import MlflowException

    if entry.champion_to is None:
        return
    record = {
        PROMOTED_AT: entry.at,
        PROMOTED_BY: entry.actor,
        PROMOTED_WHY: entry.reason,
        PROMOTED_FROM: entry.champion_from or "none",
    }
    try:
        for key, value in record.items():
            client.set_model_version_tag(entry.name, entry.champion_to, key, value)
    except MlflowException as error:
        # What was only observed may be gone by now; the log says that it was there.
        if entry.kind != "observed" or error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _point(client: Any, name: str, alias: str, version: str | None) -> None:
    from mlflow.exceptions import MlflowException

    if version is None:
        client.delete_registered_model_alias(name, alias)
        return
    try:
        client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        if alias == CHAMPION or error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        # Deleted since the entry was written: there is no way back to it, and none is pretended.
        client.delete_registered_model_alias(name, alias)


def _exists(tracker: Tracker, entry: Entry) -> bool:
    from mlflow.exceptions import MlflowException

    if entry.champion_to is None:
        return True
    try:
        tracker.client.get_model_version(entry.name, entry.champion_to)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise StageFailed(f"MLflow could not read {entry.name!r}: {error.message}") from error
    return True
