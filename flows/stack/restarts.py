"""Notice that a part dies again and again: the supervisor keeps trying, and somebody should know."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flows.stack.alerts import Alert, Alerts
from flows.stack.api import utc
from flows.stack.configuration import log_file
from flows.stack.memory import keep, recall
from flows.stack.part_process import read_starts, starts_folder
from flows.stack.parts import POOLS
from flows.stack.settings import folder
from tasks.home import Home

WATCHDOG = "watchdog"
PARTS = ("prefect", "mlflow", *POOLS, WATCHDOG)
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
    _lives: int = field(init=False)
    """Of the watchdog within the window: each sees only one of its starts."""

    def __post_init__(self) -> None:
        """Note the life that begins."""
        self._lives = _note_life(starts_folder(self.home) / "lives-of-the-watchdog.json")

    def __call__(self) -> None:
        """One look."""
        for part in PARTS:
            starts = read_starts(self.home, part)
            if starts is None:
                continue
            restarts = self._lives - 1 if part == WATCHDOG else self._restarts(part, starts.count)
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

    def _restarts(self, part: str, count: int) -> int:
        seen = self._counts.setdefault(part, deque())
        seen.append((self.clock(), count))
        while self.clock() - seen[0][0] > WINDOW_SECONDS:
            seen.popleft()
        return count - seen[0][1]


def _note_life(path: Path) -> int:
    """How many lives began within the window, this one too."""
    now = datetime.now(UTC)
    kept = recall(path)
    before = [it for it in kept if isinstance(it, str)] if isinstance(kept, list) else []
    window = timedelta(seconds=WINDOW_SECONDS)
    lives = [*(it for it in before if timedelta(0) <= now - utc(it) < window), now.isoformat()]
    # A full disk keeps no watchdog from its work.
    with suppress(OSError):
        keep(path, lives)
    return len(lives)
