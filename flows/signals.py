"""Signals that ask a command to stop: all of them end it as Ctrl-C does."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tasks.errors import Interrupted


@contextmanager
def stop_signals(
    told: Callable[[], None] = lambda: None, ended: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP (a closed terminal) raise KeyboardInterrupt in the block.

    `told` is called at the first one. A second one calls `ended` and ends the process at once:
    workers and servers notice that we are gone by their pipe, and go too.
    """
    stopping = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            try:
                ended()
            finally:
                os._exit(Interrupted.exit_code)
        stopping = True
        told()
        raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
