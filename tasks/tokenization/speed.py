"""Announce how far the tokenization is, a few times a second."""

import time

from tasks.progress import announce

SECONDS_BETWEEN = 0.25


class Speed:
    """Rows done of a total, rows per second, seconds left."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._started = time.monotonic()
        self._told = 0.0

    def advance(self, rows: int) -> None:
        """Count rows, and announce `prepared` unless that was done a moment ago."""
        self._done += rows
        now = time.monotonic()
        if now - self._told < SECONDS_BETWEEN and self._done < self._total:
            return
        self._told = now
        rate = self._done / max(now - self._started, 1e-9)
        announce(
            "prepared",
            stage="tokenization",
            done=self._done,
            total=self._total,
            rows_per_second=rate,
            eta_seconds=max(self._total - self._done, 0) / rate if rate else None,
        )
