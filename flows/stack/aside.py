"""Look at something in a thread of its own: what waits for strangers must not keep the other checks waiting."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType

from tasks.errors import StageFailed

LONG_SECONDS = 300.0
"""A look that takes longer is worth a line in the log."""


@dataclass
class Aside:
    """One look at a time. What a look raised is raised by the calls after it, until one succeeds."""

    look: Callable[[], object]
    clock: Callable[[], float] = time.monotonic
    _thread: threading.Thread | None = None
    _began: float = 0.0
    _since: datetime = field(default_factory=lambda: datetime.now(UTC))
    _failed: tuple[Exception, TracebackType | None] | None = None

    def __call__(self) -> None:
        """Begin a look, unless the one before is still under way; returns at once.

        Raises: what the last one raised; StageFailed while one is under way for more than `LONG_SECONDS`.
        """
        if self._thread is not None and self._thread.is_alive():
            if self.clock() - self._began > LONG_SECONDS:
                raise StageFailed(f"It is under way since {self._since:%Y-%m-%d %H:%M:%S} UTC")
        else:
            self._began, self._since = self.clock(), datetime.now(UTC)
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        if (failed := self._failed) is not None:
            error, trace = failed
            # Without this each call would make the trace longer.
            raise error.with_traceback(trace)

    def _run(self) -> None:
        try:
            self.look()
        except Exception as error:
            self._failed = error, error.__traceback__
        else:
            self._failed = None
