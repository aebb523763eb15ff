"""Have Prefect plan again what it planned by a clock that was ahead.

Prefect plans nothing for a schedule that has three runs to come, whenever they are. Where a clock was
ahead when it planned, and was then set right, those are of next month or next year, and nothing would be
due until then. Nor does Prefect plan a run for a moment that one was planned for already: of those that were
started by such a clock, the ones that had nothing to do go, too.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from flows.stack.api import Json, PrefectApi, utc

LOOK_SECONDS = 600.0
PATIENCE_SECONDS = 3600.0
"""So long it has to look so: after a start the clock may be behind, until the network has told the time."""
_AHEAD = timedelta(hours=1)
"""Less costs a run at the most."""
_log = logging.getLogger(__name__)


@dataclass
class Misplanned:
    """Deletes the runs that such a clock leaves."""

    api: PrefectApi
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    clock: Callable[[], float] = time.monotonic
    _since: float | None = field(default=None, init=False)
    """When such runs were first seen."""

    def __call__(self) -> int:
        """One look; how many runs went. Raises: StageFailed when Prefect does not answer."""
        found = self._found()
        if not found:
            self._since = None
            return 0
        if self._since is None:
            self._since = self.clock()
        if self.clock() - self._since < PATIENCE_SECONDS:
            return 0
        _log.warning(
            "%d runs were planned or skipped by a clock that was ahead; Prefect plans anew",
            len(found),
        )
        return self.api.delete_flow_runs([run["id"] for run in found])

    def _found(self) -> list[Json]:
        """Runs of a time to come that were made, or ended, later than now."""
        now = self.now()
        return [
            run
            for names, moment in ((("Scheduled", "Late"), "created"), (("Skipped",), "end_time"))
            for run in self.api.flow_runs(
                {
                    "state": {"name": {"any_": names}},
                    "expected_start_time": {"after_": now.isoformat()},
                }
            )
            if run["auto_scheduled"] and utc(run[moment]) > now + _AHEAD
        ]
