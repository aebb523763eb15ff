"""Notice a server that lives and does not answer, and let the supervisor start it again."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flows.stack import leftovers
from flows.stack.alerts import Alert, Alerts
from flows.stack.configuration import log_file
from flows.stack.part_process import read_starts
from flows.stack.parts import Part
from tasks.home import Home
from tasks.stack import answers

PATIENCE_SECONDS = 300.0
"""Longer than a start on a busy machine: one that is only slow must not be started again for ever."""
_log = logging.getLogger(__name__)


@dataclass
class Hangs:
    """Asks each server whether it is well. One that died is the supervisor's to start."""

    home: Home
    parts: list[Part]
    alerts: Alerts
    clock: Callable[[], float] = time.monotonic
    _silent: dict[tuple[str, int], float] = field(default_factory=dict)
    """A part's incarnation -> since when it does not answer."""

    def __call__(self) -> None:
        """One look; takes 5 s for each server that hangs."""
        silent = {}
        for part in self.parts:
            starts = read_starts(self.home, part.name)
            if not part.health or starts is None or answers(part.health):
                continue
            incarnation = (part.name, starts.count)
            silent[incarnation] = self._silent.get(incarnation, self.clock())
            if self.clock() - silent[incarnation] >= PATIENCE_SECONDS:
                self._end(part, starts.since)
        self._silent = silent

    def _end(self, part: Part, since: str) -> None:
        ended = leftovers.end(leftovers.processes(self.home, part.name), grace_seconds=10)
        if not ended:
            # Nothing hangs: a person has stopped it.
            return
        _log.warning(
            "%s did not answer for %.0f s: ended %d processes", part.title, PATIENCE_SECONDS, ended
        )
        self.alerts.tell(
            Alert(
                "part-hung",
                f"{part.name} {since}",
                part.name,
                f"The {part.title} lived and did not answer at {part.health} for "
                f"{PATIENCE_SECONDS / 60:.0f} minutes; it was ended and is started again. "
                f"What it did last stands in {log_file(self.home, part.name)}.",
            )
        )
