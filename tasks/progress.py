"""Live events of a run: stages and workers announce, the display, the tracker and the log listen."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Event = dict[str, Any]
Listener = Callable[[Event], None]

_listeners: list[Listener] = []
_log = logging.getLogger(__name__)


def announce(event: str, **values: Any) -> None:
    """Tell every listener. A listener that fails is logged and never stops the work.

    Events: `stage` (stage, state: started|reused|done|failed, seconds, fingerprint), `step` (stage, step,
    total_steps, loss, learning_rate, tokens_per_second, eta_seconds), `prepared` (stage, done,
    total, rows_per_second, eta_seconds), `generated` and
    `measured` (stage, model, done, total), `note` (stage, message), `waiting` (stage, message),
    `outcome` (outcome: the run's outcome as far as it is known).
    """
    for listener in list(_listeners):
        try:
            listener({"event": event, **values})
        except Exception:
            _log.warning("A progress listener failed", exc_info=True)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with every event announced inside the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
