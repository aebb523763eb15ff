"""Tell people what went wrong without them: alerts into the outbox that promotions use, each told once."""

import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from flows.stack.settings import folder
from tasks.home import Home
from tasks.promotion.notices import Notices

EVENT = "loraline.alert"
"""The event's name in Prefect and in webhooks: what an automation or a receiver filters by."""
ENDS = frozenset({"crashed", "failed", "budget"})
"""How a run ends badly. It does so once: the run tells of itself where it can, else the watchdog does."""
REMEMBERED = 2000
"""So many told alerts are remembered, the newest."""
LONGEST_PAUSE_SECONDS = 900.0
"""Between two attempts to reach a receiver that is away."""
_NAMESPACE = uuid.UUID("6a9a3d7e-6f0e-4b52-9d6c-0d4c1f6a2b11")


@dataclass(frozen=True)
class Alert:
    """One thing that a person should know."""

    kind: str
    """`crashed`, `failed`, `budget`, `refused`, `no-success`, `part-restarts`, `part-hung`."""
    subject: str
    """What it is about, such as a run's id: it is told once, however a run's end is called."""
    name: str
    """The adapter, the deployment or the part, for a person."""
    text: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The same in every repetition: a receiver that got it twice can tell."""
        kind = "run" if self.kind in ENDS else self.kind
        return str(uuid.uuid5(_NAMESPACE, f"{kind} {self.subject}"))


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
        self._clock, self._next_delivery, self._pause = clock, 0.0, 0.0
        memory.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            # Damaged or not there: rather begin anew than tell everything again.
            if not self._recall():
                self._keep()

    def is_told(self, alert: Alert) -> bool:
        """Whether it was put into the outbox before, by whomever."""
        self._recall()
        return alert.id in self._told

    def tell(self, alert: Alert) -> bool:
        """Put the alert into the outbox; False when it was told before."""
        with self._lock:
            if self.is_told(alert):
                return False
            at = datetime.now(UTC)
            # First the outbox: killed in between, the same notice with the same id is written once more.
            self._put(alert, at)
            self._next_delivery = 0.0
            self._told[alert.id] = at.isoformat()
            self._told = dict(list(self._told.items())[-REMEMBERED:])
            self._keep()
        return True

    def deliver(self) -> int:
        """Send what waits in the outbox; returns how many notices still wait.

        A receiver that is away is asked less and less often, and at once when there is something new.
        """
        if self._clock() < self._next_delivery:
            return 0
        waiting = self._notices.deliver(sleep=lambda _: None)
        self._pause = min(LONGEST_PAUSE_SECONDS, 2 * self._pause + 15.0) if waiting else 0.0
        self._next_delivery = self._clock() + self._pause
        return waiting

    def _put(self, alert: Alert, at: datetime) -> None:
        """A notice as `Notices.deliver` reads it. Without a receiver there is nobody to keep it for."""
        folder = self._notices.folder
        if not self._notices.targets or any(folder.glob(f"*-{alert.id}.json")):
            return
        entry = {"name": alert.name, "kind": alert.kind, "text": alert.text, **alert.details}
        notice = {
            "id": alert.id,
            "event": EVENT,
            "occurred": at.isoformat(),
            "entry": entry,
            "waiting": sorted(self._notices.targets),
        }
        # The outbox is emptied in the order of names: alerts in that of time, behind promotions.
        _write(folder / f"{time.time_ns()}-{alert.id}.json", notice)

    def _recall(self) -> bool:
        """Read what was told meanwhile; False where the memory is not there or is damaged."""
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            self.since, self._told = datetime.fromisoformat(kept["since"]), dict(kept["told"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return True

    def _keep(self) -> None:
        _write(self._path, {"since": self.since.isoformat(), "told": self._told})


def memory_of(home: Home) -> Path:
    """The file in which a home's alerts are remembered."""
    return folder(home) / "alerts.json"


def _write(path: Path, value: dict[str, Any]) -> None:
    """Synced and renamed: it survives a kill, and a loss of power."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
