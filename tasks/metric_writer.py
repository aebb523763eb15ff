"""Live metrics that never disturb training: points are kept, sent in batches, and flushed at the end."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tasks.errors import StageFailed

SECONDS_BETWEEN_BATCHES = 5.0
"""Each batch takes some ten milliseconds of a processor that trains."""
_log = logging.getLogger(__name__)


class Point(NamedTuple):
    """One value of a metric; a point that is sent twice is stored once."""

    name: str
    value: float
    timestamp_ms: int
    step: int


class MetricWriter:
    """Collects points and hands them to `send` from a thread of its own.

    `send` may be slow and may fail: `add` returns at once whatever happens, and the points stay
    here until they are sent. `close` sends what is left and is the only method that raises.
    """

    def __init__(
        self,
        send: Callable[[list[Point]], None],
        *,
        seconds_between_batches: float = SECONDS_BETWEEN_BATCHES,
        final_attempts: int = 4,
    ) -> None:
        self._send = send
        self._pause = seconds_between_batches
        self._final_attempts = final_attempts
        self._points: list[Point] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="metric-writer", daemon=True)
        self._thread.start()

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Keep these values of this step; they are sent within about five seconds."""
        now = time.time_ns() // 1_000_000
        with self._lock:
            self._points.extend(
                Point(name, float(value), now, step) for name, value in values.items()
            )

    def close(self) -> None:
        """Send what is left.

        Raises: StageFailed with the number of points that could not be sent after several attempts.
        """
        self._closing = True
        self._wake.set()
        self._thread.join()
        error: Exception | None = None
        for attempt in range(self._final_attempts):
            if attempt:
                time.sleep(self._pause * 2 ** (attempt - 1))
            error = self._flush()
            if error is None:
                return
        raise StageFailed(
            f"{len(self._points)} metric values could not be sent to MLflow in "
            f"{self._final_attempts} attempts: {error}. What was computed is in the store: start the "
            "tracking server again and run the same recipe, which sends them once more."
        ) from error

    def _run(self) -> None:
        pause = self._pause
        while not self._closing:
            self._wake.wait(pause)
            error = self._flush()
            if error is None:
                pause = self._pause
            else:
                # The server may be away for long: ask ever more rarely, at most once a minute.
                pause = min(pause * 2, 60.0)
                _log.warning(
                    "Metrics are kept until MLflow answers again (%d values wait): %s",
                    len(self._points),
                    error,
                )

    def _flush(self) -> Exception | None:
        with self._lock:
            batch = list(self._points)
        if not batch:
            return None
        try:
            self._send(batch)
        except Exception as error:  # any failure of the server or the network
            return error
        with self._lock:
            # Only what was sent: more points may have come meanwhile.
            del self._points[: len(batch)]
        return None
