"""End a process whose rounds stand still, so that its supervisor starts it again."""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

ROUND_SECONDS = 120.0
"""A crash is to be seen within two minutes: a round that takes longer has failed at that already."""
EXIT_CODE = 70
"""`EX_SOFTWARE` of sysexits.h."""
_log = logging.getLogger(__name__)


class RoundLimit:
    """A thread that looks at the time, whatever the others are stuck in."""

    def __init__(
        self, seconds: float = ROUND_SECONDS, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Starts the thread; nothing is ended outside of a round."""
        self._seconds, self._clock = seconds, clock
        self._began: float | None = None
        self._doing = ""
        threading.Thread(target=self._watch, daemon=True).start()

    def at(self, what: str) -> None:
        """What the round is at, for the log; the first call begins it."""
        self._doing = what
        if self._began is None:
            self._began = self._clock()

    def end(self) -> None:
        """The round is over."""
        self._began = None

    def _watch(self) -> None:
        while True:
            time.sleep(self._seconds / 20)
            if (began := self._began) is not None and self._clock() - began > self._seconds:
                self._end_process()

    def _end_process(self) -> None:
        _log.critical(
            "A round takes longer than %.0f s, it is at the check %s: this process ends, and the supervisor "
            "starts it again. Where its threads are:",
            self._seconds,
            self._doing,
        )
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        logging.shutdown()
        # Nothing else ends a process whose main thread waits in a system call.
        os._exit(EXIT_CODE)
