"""How far a step of the dataset's preparation is, told about once a second."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tasks.progress import announce

SECONDS_BETWEEN_EVENTS = 1.0
_LOOK_EVERY = 256
Item = TypeVar("Item")


class Pace:
    """Rows done, of a total where it is known, rows per second, seconds left."""

    def __init__(self, step: str, total: int | None = None) -> None:
        """`step` is what is done to the rows; a step that passes over them twice counts them twice."""
        self._step = step
        self._total = total
        self._done = 0
        self._began = self._told = time.monotonic()

    def over(self, rows: Iterable[Item]) -> Iterator[Item]:
        """The rows as they are; announces `prepared` on the way."""
        for row in rows:
            yield row
            self.advance()

    def advance(self, rows: int = 1) -> None:
        """Count rows that are done."""
        self._done += rows
        if self._done % _LOOK_EVERY >= rows:
            return
        now = time.monotonic()
        if now - self._told < SECONDS_BETWEEN_EVENTS:
            return
        self._told = now
        speed = self._done / max(now - self._began, 1e-9)
        facts = {"done": self._done, "rows_per_second": speed}
        if self._total is not None:
            facts["total"] = self._total
            facts["eta_seconds"] = max(0, self._total - self._done) / speed
        announce("prepared", stage="dataset", step=self._step, **facts)
