"""Notice that a part dies again and again: the supervisor keeps trying, and somebody should know."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from flows.stack.alerts import Alert, Alerts
from flows.stack.configuration import log_file
from flows.stack.part_process import read_starts
from flows.stack.parts import POOLS
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
    _told: set[str] = field(default_factory=set)
    """Parts that have not been well for an hour since somebody was told."""

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
            if not restarts:
                self._told.discard(part)
            if restarts >= MANY and part not in self._told:
                self._told.add(part)
                self.alerts.tell(
                    Alert(
                        "part-restarts",
                        f"{part} {starts.count} {starts.since}",
                        part,
                        f"{part} was started again {restarts} times within an hour. "
                        f"The reason stands at the end of {log_file(self.home, part)}.",
                    )
                )
