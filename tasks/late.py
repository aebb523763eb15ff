"""Deliver later what a server that is away does not take now: nobody waits for it, and nothing is lost."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tasks.outage import is_outage

SECONDS_BETWEEN = 5.0
"""Between two attempts; a process that has ended its work waits for the next one."""
LONGEST_SECONDS = 900.0
"""What has waited so long is given up."""
LONGEST_AT_EXIT_SECONDS = 30.0
"""The same once the process wants to end: its final state was taken, so the server is back."""
_log = logging.getLogger(__name__)


@dataclass
class Late:
    """Deliveries that wait, in order; those of one key replace each other."""

    pause: float = SECONDS_BETWEEN
    longest: float = LONGEST_SECONDS
    longest_at_exit: float = LONGEST_AT_EXIT_SECONDS
    _waiting: dict[str, Callable[[], object]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def deliver(self, key: str, what: str, send: Callable[[], object]) -> None:
        """Call `send`; where an outage stops it, again from a thread of its own, for a quarter of an hour.

        `what` is the thing, for a person. Any other failure costs a warning, and no work: hours of it
        may be complete by then.
        """
        with self._lock:
            if self._waiting:
                # In order, and without one more wait for a server that is known to be away.
                self._waiting.pop(key, None)
                self._waiting[key] = send
                return
        error = _failure_of(send)
        if error is None:
            return
        if not is_outage(error):
            _log.warning("Prefect did not take %s", what, exc_info=error)
            return
        _log.warning("Prefect is away; %s is delivered when it is back (%s)", what, error)
        with self._lock:
            first = not self._waiting
            self._waiting[key] = send
            if first:
                # No daemon: the process does not end before this thread has had its chance.
                threading.Thread(target=self._keep_trying, name="late", daemon=False).start()

    def _keep_trying(self) -> None:
        began = time.monotonic()
        exiting: float | None = None
        while True:
            time.sleep(self.pause)
            now = time.monotonic()
            if exiting is None and not threading.main_thread().is_alive():
                exiting = now
            given_up = now - began > self.longest or (
                exiting is not None and now - exiting > self.longest_at_exit
            )
            if self._all_sent(given_up):
                return

    def _all_sent(self, given_up: bool) -> bool:
        """Send what waits until something stops it; whether nothing waits any more."""
        while True:
            with self._lock:
                if not self._waiting:
                    return True
                key, send = next(iter(self._waiting.items()))
            error = _failure_of(send)
            if error is not None and is_outage(error) and not given_up:
                return False
            if error is not None:
                _log.warning("Prefect did not take %s: %s", key, error)
            with self._lock:
                # Unless a newer one took its place meanwhile.
                if self._waiting.get(key) is send:
                    del self._waiting[key]


_late = Late()
deliver = _late.deliver


def _failure_of(send: Callable[[], object]) -> Exception | None:
    try:
        send()
    except Exception as error:
        return error
    return None
