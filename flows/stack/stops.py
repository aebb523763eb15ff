"""When the stack was stopped on purpose: a run that was cut off then did not crash by any fault of its own."""

import contextlib
from datetime import UTC, datetime
from pathlib import Path

from flows.stack.api import Json, utc
from flows.stack.memory import keep, recall
from flows.stack.settings import folder
from tasks.home import Home

NEWEST = 20
"""Stops that are remembered. What an older one cut off the watchdog has seen since, or a newer one cut off too."""


def note_stop(home: Home) -> None:
    """Write down that the stack is stopped now. A disk that is full keeps no stack from being stopped."""
    with contextlib.suppress(OSError):
        keep(_memory(home), [*_stops(home), datetime.now(UTC).isoformat()][-NEWEST:])


def was_cut_off(home: Home, run: Json) -> bool:
    """Whether the stack was stopped between the run's start and its end; one that never began was to start
    when it was due."""
    start, end = run.get("start_time") or run.get("expected_start_time"), run.get("end_time")
    if not start or not end:
        return False
    return any(utc(start) <= utc(stop) <= utc(end) for stop in _stops(home))


def _stops(home: Home) -> list[str]:
    found = recall(_memory(home))
    return [it for it in found if isinstance(it, str)] if isinstance(found, list) else []


def _memory(home: Home) -> Path:
    return folder(home) / "stops.json"
