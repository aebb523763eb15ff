"""Notice that a part dies again and again: the supervisor keeps trying, and somebody should know."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from flows.stack.alerts import Alert, Alerts
from flows.stack.api import utc
from flows.stack.configuration import log_file
from flows.stack.memory import keep, recall
from flows.stack.part_process import read_starts
from flows.stack.parts import POOLS
from flows.stack.settings import folder
from tasks.home import Home

PARTS = ("prefect", "mlflow", *POOLS)
"""Not the watchdog itself: each of its lives sees only one."""
WINDOW_SECONDS = 3600.0
MANY = 5
"""So many restarts within the window are told."""


@dataclass
class Restarts:
    """Compares how often each part was started with what it was an hour ago."""

    home: Home
    alerts: Alerts
    clock: Callable[[], float] = time.monotonic
    _counts: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)

    def __call__(self) -> None:
        """One look."""
        for part in PARTS:
            starts = read_starts(self.home, part)
            if starts is None:
                continue
            seen = self._counts.setdefault(part, deque())
            seen.append((self.clock(), starts.count))
            while self.clock() - seen[0][0] > WINDOW_SECONDS:
                seen.popleft()
            restarts = starts.count - seen[0][1]
            # Known to a watchdog that is started again, too: what ails a part often ails it.
            path = folder(self.home) / "restarts.json"
            told = recall(path) or []
            if part in told:
                if datetime.now(UTC) - utc(starts.since) > timedelta(seconds=WINDOW_SECONDS):
                    keep(path, [it for it in told if it != part])
            elif restarts >= MANY:
                self.alerts.tell(
                    Alert(
                        "part-restarts",
                        f"{part} {starts.count} {starts.since}",
                        part,
                        f"{part} was started again {restarts} times within an hour. "
                        f"The reason stands at the end of {log_file(self.home, part)}.",
                    )
                )
                keep(path, [*told, part])
