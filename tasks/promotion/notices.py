"""Tell others of a promotion at least once: an outbox on disk, a Prefect event, signed webhooks."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tasks.files import write_json
from tasks.home import Home
from tasks.promotion.delivery import Target, TargetFailed, prefect_target, webhook_target
from tasks.promotion.entry import Entry

WEBHOOKS = "LORALINE_WEBHOOKS"
"""Addresses, separated by spaces. They may hold secrets: no file and no log line has them."""
WEBHOOK_SECRET = "LORALINE_WEBHOOK_SECRET"
"""Signs every webhook (HMAC-SHA256); `whsec_<base64>` or any text."""
KEPT_DAYS = 7
"""A notice that nobody took for so long is given up, with a warning."""
ANYBODY = "anybody"
"""Whom a notice waits for that nobody knew a receiver of: for whoever the next process knows."""
_RECEIVERS = "receivers.json"
"""Name of a receiver -> the day when a process of this home last knew its address."""
ATTEMPTS = 3
"""So often a command sends a notice before it leaves it to the next one."""
_RETRY_SECONDS = (0.5, 2.0)
MOST_TAKEN = 10_000
"""So many deliveries a process remembers, the newest: some megabytes, and more than a full disk lasts."""
_log = logging.getLogger(__name__)


class Taken:
    """Who took which notice, as long as this process lives: where a disk takes nothing, nothing else knows."""

    def __init__(self, most: int = MOST_TAKEN) -> None:
        """Forgets the oldest beyond `most`."""
        self._most = most
        self._pairs: dict[tuple[str, str], None] = {}
        # One thread may deliver while another one tells.
        self._lock = threading.Lock()

    def add(self, notice_id: str, name: str) -> None:
        """The receiver of this name took it."""
        with self._lock:
            self._pairs[notice_id, name] = None
            while len(self._pairs) > self._most:
                del self._pairs[next(iter(self._pairs))]

    def __contains__(self, pair: tuple[str, str]) -> bool:
        """Whether a notice was taken by a receiver, as `(id, name)`."""
        with self._lock:
            return pair in self._pairs


@dataclass(frozen=True)
class Notices:
    """Where promotions are told, and the notices that wait to be delivered."""

    folder: Path
    targets: Mapping[str, Target] = field(default_factory=dict)
    """By a name that shows no secret: `prefect`, `webhook-<12 digits of the address's sha256>`."""
    others: frozenset[str] = frozenset()
    """Receivers that are left to other processes of this home: what is kept waits for them, too."""
    taken: Taken = field(default_factory=Taken, repr=False, compare=False)

    def put(self, entry: Entry) -> None:
        """Keep the notice of an entry of the promotion log until everybody took it."""
        told = {**entry.value, "hash": entry.hash}
        self.keep(f"{entry.number:06d}", entry.id, event_name(entry), entry.at, told)

    def keep(
        self, order: str, notice_id: str, event: str, occurred: str, entry: Mapping[str, Any]
    ) -> None:
        """Keep a notice until everybody took it; a second call with its id changes nothing.

        `order` is a number: notices are sent in the order of these as words. `occurred` is a time in ISO
        8601. Renamed into place and synced: it survives a kill, and a loss of power.
        """
        if any(self.folder.glob(f"*-{notice_id}.json")):
            return
        notice = {
            "id": notice_id,
            "event": event,
            "occurred": occurred,
            "entry": entry,
            # Others of this home may know receivers that this process does not, as a worker's webhooks.
            "waiting": sorted({*self.targets, *self.others, *self._known()}) or [ANYBODY],
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{order}-{notice_id}.json", notice)

    def send(self, notice_id: str, event: str, occurred: str, entry: Mapping[str, Any]) -> bool:
        """Send a notice that cannot be kept, where no disk has room for it, to whom has not taken it yet.

        Returns whether everybody known has it. A second call of this process sends it to the others only.
        """
        notice = {"id": notice_id, "event": event, "occurred": occurred, "entry": entry}
        left = [name for name in self.targets if (notice_id, name) not in self.taken]
        for name in list(left):
            target = self.targets[name]
            try:
                target.send(notice)
            except TargetFailed as error:
                _log.warning(
                    "Notice %s was not taken by %s (%s): %s", notice_id, name, target.shown, error
                )
            else:
                self.taken.add(notice_id, name)
                left.remove(name)
        return bool(self.targets) and not left

    def is_taken(self, notice_id: str) -> bool:
        """Whether anybody took it from this process."""
        return any((notice_id, name) in self.taken for name in self.targets)

    def deliver(
        self, *, attempts: int = ATTEMPTS, sleep: Callable[[float], None] = time.sleep
    ) -> int:
        """Send what waits, each to whom has not taken it yet; returns how many notices still wait.

        A notice is sent up to `attempts` times. A receiver that is away then is left alone until the next
        call: what it did not take is sent by that, of whatever command. So a receiver that says nothing
        costs 10 s for each attempt, however many notices wait. Somebody else who delivers just now is left
        alone as well.
        """
        if not self.folder.is_dir():
            return 0
        try:
            with FileLock(self.folder / ".delivering.lock", timeout=0):
                self._remember()
                round_ = _Round(attempts, sleep)
                return sum(not self._deliver(path, round_) for path in self._waiting())
        except Timeout:
            return len(list(self._waiting()))

    def _waiting(self) -> Iterator[Path]:
        yield from sorted(self.folder.glob("[0-9]*.json"))

    def _deliver(self, path: Path, round_: "_Round") -> bool:
        try:
            notice: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            waiting, occurred = list(notice["waiting"]), datetime.fromisoformat(notice["occurred"])
            notice["id"] = str(notice["id"])
        except (OSError, ValueError, KeyError, TypeError):
            _log.warning("%s is no notice; it is left where it is", path)
            return False
        if ANYBODY in waiting and self.targets:
            waiting = sorted(self.targets)
        for name in list(waiting):
            if self._has_it(name, notice, round_):
                waiting.remove(name)
                # On a full disk those behind it are told all the same. An empty list is never written.
                with suppress(OSError):
                    if waiting:
                        write_json(path, {**notice, "waiting": waiting})
        if waiting and (datetime.now(UTC) - occurred).days >= KEPT_DAYS:
            # Where nobody ever wanted to be told, nobody misses it.
            _log.log(
                logging.DEBUG if waiting == [ANYBODY] else logging.WARNING,
                "Given up after %d days: notice %s for %s",
                KEPT_DAYS,
                notice["id"],
                ", ".join(waiting),
            )
            waiting = []
        if not waiting:
            path.unlink(missing_ok=True)
        return not waiting

    def _has_it(self, name: str, notice: dict[str, Any], round_: "_Round") -> bool:
        """Whether the receiver took the notice, now or before in this process."""
        if (notice["id"], name) in self.taken:
            return True
        target = self.targets.get(name)
        # One that this process knows no address of waits for a process that does.
        if target is None or name in round_.away or not _sent(target, notice, name, round_):
            return False
        self.taken.add(notice["id"], name)
        return True

    def _known(self) -> list[str]:
        """Who was told by any process of this home in the last days."""
        since = datetime.now(UTC) - timedelta(days=KEPT_DAYS)
        return [name for name, seen in self._seen().items() if seen >= since.date().isoformat()]

    def _seen(self) -> dict[str, str]:
        try:
            found = json.loads((self.folder / _RECEIVERS).read_text(encoding="utf-8"))
            return {str(name): str(seen) for name, seen in found.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _remember(self) -> None:
        today = datetime.now(UTC).date().isoformat()
        known = self._seen()
        now_known = {**known, **dict.fromkeys(self.targets, today)}
        if now_known == known:
            return
        with suppress(OSError):
            write_json(self.folder / _RECEIVERS, now_known)


@dataclass
class _Round:
    """One call of `deliver`."""

    attempts: int
    sleep: Callable[[float], None]
    away: set[str] = field(default_factory=set)
    """Receivers that nothing more is sent to in this round."""


def _sent(target: Target, notice: dict[str, Any], name: str, round_: _Round) -> bool:
    for attempt in range(round_.attempts):
        if attempt:
            round_.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS)) - 1])
        try:
            target.send(notice)
            return True
        except TargetFailed as error:
            failed = error
            if not error.worth_retrying:
                break
    if failed.is_away:
        round_.away.add(name)
    _log.warning(
        "Notice %s was not taken by %s (%s): %s. It waits in the outbox and is sent again by the next "
        "promotion command or reconciling run.",
        notice["id"],
        name,
        target.shown,
        failed,
    )
    return False


def notices_of(
    home: Home, *, prefect_api: str | None, environ: Mapping[str, str] | None = None
) -> Notices:
    """The outbox of this home, with the receivers that the environment names.

    `prefect_api` is the address of the Prefect API whose server is told (None: no server is known).
    """
    environ = os.environ if environ is None else environ
    targets: dict[str, Target] = {}
    if prefect_api:
        targets["prefect"] = prefect_target(prefect_api, environ)
    for url in environ.get(WEBHOOKS, "").split():
        target = webhook_target(url, environ.get(WEBHOOK_SECRET, ""))
        targets[target.name] = target
    return Notices(home.root / "outbox", targets)


def event_name(entry: Entry) -> str:
    """The event's name: `loraline.promotion`, or `.rollback`, `.observed`, `.alert` behind the first part."""
    if entry.verified is False:
        return "loraline.alert"
    moved = entry.kind == "observed" and entry.champion_to != entry.champion_from
    if moved and (entry.champion_to is None or entry.gate == "refused"):
        return "loraline.alert"
    return f"loraline.{entry.kind}"
