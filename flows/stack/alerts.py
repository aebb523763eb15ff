"""Tell people what went wrong without them: alerts into the outbox that promotions use, each told once."""

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from flows.stack.memory import keep, recall
from flows.stack.settings import folder
from tasks.home import Home
from tasks.promotion.notices import Notices

EVENT = "loraline.alert"
"""The event's name in Prefect and in webhooks: what an automation or a receiver filters by."""
Kind = Literal[
    "crashed",
    "failed",
    "budget",
    "refused",
    "no-success",
    "part-restarts",
    "part-hung",
    "worker-silent",
    "start-failed",
]
"""What can have happened. Each has its line in the table of `docs/operations.md`."""
ENDS: frozenset[Kind] = frozenset({"crashed", "failed", "budget"})
"""How an attempt of a run ends badly, once: the run tells of itself where it can, else the watchdog does."""
RUNS_REMEMBERED = timedelta(days=8)
"""So long it is known that a run's end was told: longer than anybody looks back for ended runs."""
REMEMBERED = timedelta(days=400)
"""The same of everything that may go on: a verdict judged again each night, a schedule that stays silent."""
STEP = timedelta(hours=1)
"""Between two notes of how far somebody has looked."""
MOST_HELD = 100
"""So many alerts wait for a disk or for those who are away, when no disk takes them; the newest."""
LONGEST_PAUSE_SECONDS = 900.0
"""Between two attempts to reach a receiver that is away."""
Notice = tuple[str, str, str, dict[str, Any]]
"""As `Notices.send` takes it: id, event, time, entry."""
_NAMESPACE = uuid.UUID("6a9a3d7e-6f0e-4b52-9d6c-0d4c1f6a2b11")


@dataclass(frozen=True)
class Alert:
    """One thing that a person should know."""

    kind: Kind
    subject: str
    """What it is about, such as a run's id: it is told once, however a run's end is called."""
    name: str
    """The adapter, the deployment or the part, for a person."""
    text: str
    details: dict[str, Any] = field(default_factory=dict)
    goes_on: bool = False
    """Whether a run's end stands for what may last: for all that fail until one succeeds."""

    @property
    def id(self) -> str:
        """The same in every repetition: a receiver that got it twice can tell."""
        return identity(self.kind, self.subject)

    @property
    def remembered(self) -> timedelta:
        """How long it must be known that it was told."""
        return RUNS_REMEMBERED if self.kind in ENDS and not self.goes_on else REMEMBERED


def identity(kind: Kind, subject: str) -> str:
    """The id of the alert of this kind on this subject."""
    return str(uuid.uuid5(_NAMESPACE, f"{'run' if kind in ENDS else kind} {subject}"))


def attempt_of(run_id: str, run_count: int | None) -> str:
    """What the end of a run is about: Retry makes another attempt of it, which ends for itself, under the same id."""
    return f"{run_id} attempt {run_count}" if run_count and run_count > 1 else run_id


class Alerts:
    """Puts each alert into the outbox once, and remembers over restarts what was told.

    The memory is shared by the watchdog and by runs, which are processes of their own.
    """

    def __init__(
        self,
        memory: Path,
        notices: Notices,
        *,
        now: datetime | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`memory` is a file; without it nothing before `now` counts as news."""
        self._path = memory
        self._lock = FileLock(memory.with_name(f"{memory.name}.lock"))
        self._notices = notices
        self.since = now or datetime.now(UTC)
        self._told: dict[str, str] = {}
        """Alert -> until when it is remembered, ISO 8601 in UTC."""
        self._sent: dict[str, str] = {}
        """The same of those that were told while no disk took it: full, or read-only."""
        self._held: deque[Notice] = deque(maxlen=MOST_HELD)
        """What no outbox took, and some have and others have not."""
        self._clock, self._next_delivery, self._pause = clock, 0.0, 0.0
        self._told_here, self._tried = 0, 0
        with self._alone():
            # Damaged or not there: rather begin anew than tell everything again.
            if not self._recall():
                self._keep()

    def is_told(self, kind: Kind, subject: str) -> bool:
        """Whether such an alert was put into the outbox before, by whomever."""
        self._recall()
        told = identity(kind, subject)
        return told in self._told or told in self._sent

    def tell(self, alert: Alert) -> bool:
        """Put the alert into the outbox; False when it was told before.

        Where the outbox cannot be written it is sent at once, and `deliver` has what the others get.

        Raises: OSError where nobody took it then.
        """
        with self._alone():
            if self.is_told(alert.kind, alert.subject):
                return False
            at = datetime.now(UTC)
            # First the outbox: killed in between, the same notice with the same id is written once more.
            entry = {"name": alert.name, "kind": alert.kind, "text": alert.text, **alert.details}
            notice = (alert.id, EVENT, at.isoformat(), entry)
            try:
                self._notices.keep(_order(), *notice)
            except OSError:
                # The disk is full or read-only, which somebody must hear of.
                if not self._notices.send(*notice):
                    if not self._notices.is_taken(alert.id):
                        raise
                    # Raised, it would be told by the next look again, and hide what that has to tell after it.
                    self._held.append(notice)
                self._sent[alert.id] = _seconds(at + alert.remembered)
                return True
            self._told_here += 1
            today = _seconds(at)
            self._told = {it: until for it, until in self._told.items() if until > today}
            self._sent[alert.id] = _seconds(at + alert.remembered)
            self._keep()
        return True

    def look_from(self, moment: datetime) -> None:
        """Nothing before the moment counts as news any more; kept in steps of an hour, against wear."""
        with self._alone():
            self._recall()
            # It is ahead of us where a clock was that has been put right since.
            if moment - self.since >= STEP or self.since > datetime.now(UTC):
                self.since = moment
                self._keep()

    def deliver(self) -> int:
        """Send what waits in the outbox, one attempt each; returns how many notices still wait.

        A receiver that is away is asked less and less often, and at once when there is something new. Takes
        10 s for each receiver that does not answer. May be called in a thread of its own, beside `tell`.
        """
        told = self._told_here
        if told == self._tried and self._clock() < self._next_delivery:
            return 0
        self._tried = told
        # Also where the disk lets nobody deliver.
        waiting = 1
        try:
            held = self._hand_over()
            waiting = held + self._notices.deliver(attempts=1)
        finally:
            self._pause = min(LONGEST_PAUSE_SECONDS, 2 * self._pause + 15.0) if waiting else 0.0
            self._next_delivery = self._clock() + self._pause
        return waiting

    def _hand_over(self) -> int:
        """Put what is held into the outbox, or send it to those who were away; returns how much is still held."""
        for notice in list(self._held):
            try:
                self._notices.keep(_order(), *notice)
            except OSError:
                if not self._notices.send(*notice):
                    continue
            # It may have made room for a newer one meanwhile.
            with suppress(ValueError):
                self._held.remove(notice)
        return len(self._held)

    def _recall(self) -> bool:
        """Read what was told meanwhile; False where the memory is not there or is damaged."""
        try:
            kept = recall(self._path)
            self.since, self._told = datetime.fromisoformat(kept["since"]), dict(kept["until"])
        except (ValueError, KeyError, TypeError):
            return False
        return True

    def _keep(self) -> None:
        """Remember over a restart; what the disk does not take now, by the next call that it does."""
        told = {**self._told, **self._sent}
        with suppress(OSError):
            keep(self._path, {"since": self.since.isoformat(), "until": told})
            self._told, self._sent = told, {}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The memory's lock; where no file can be made nobody else writes either."""
        with ExitStack() as held:
            with suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(self._lock)
            yield


def memory_of(home: Home) -> Path:
    """The file in which a home's alerts are remembered."""
    return folder(home) / "alerts.json"


def _order() -> str:
    """As a word, the time stands behind the numbers of promotions."""
    return str(time.time_ns())


def _seconds(at: datetime) -> str:
    return at.isoformat("T", "seconds")
