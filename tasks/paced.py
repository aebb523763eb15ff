"""Pass things on in bundles, few a minute however many come: a server keeps what it is sent for months."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Paced(Generic[_T]):
    """Calls `write` from a thread of its own, at once for the first thing and then at most every `seconds`.

    Whoever adds never waits, also when `write` does: a server that is away must not keep a worker's
    output waiting, which would stop the worker.
    """

    def __init__(
        self,
        write: Callable[[Sequence[_T], int], None],
        *,
        seconds: float,
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`write` gets the last `most` things since its last call, and how many before those were left out."""
        self._write = write
        self._seconds = seconds
        self._clock = clock
        self._waiting: deque[_T] = deque(maxlen=most)
        self._left_out = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def add(self, thing: _T) -> None:
        """Keep it for the next bundle."""
        with self._changed:
            self._left_out += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(thing)
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._pass_on, daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self, patience_seconds: float = 10.0) -> None:
        """Pass on what waits, without further delay; gives up on a `write` that does not return in time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout=patience_seconds)

    def _pass_on(self) -> None:
        due = self._clock()
        while True:
            with self._changed:
                while not self._closing and (not self._waiting or self._clock() < due):
                    self._changed.wait(max(0.0, due - self._clock()) if self._waiting else None)
                bundle, left_out = list(self._waiting), self._left_out
                self._waiting.clear()
                self._left_out = 0
                if not bundle:
                    return
            try:
                self._write(bundle, left_out)
            except Exception:
                _log.warning("A bundle of %d could not be passed on", len(bundle), exc_info=True)
            due = self._clock() + self._seconds
