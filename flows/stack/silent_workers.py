"""Notice a worker that lives and does not work: its process is there, and Prefect does not hear of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flows.stack import supervisor
from flows.stack.alerts import Alert, Alerts
from flows.stack.api import PrefectApi
from flows.stack.configuration import log_file
from flows.stack.hangs import PATIENCE_SECONDS
from flows.stack.part_process import read_starts
from flows.stack.parts import POOLS, worker_name
from flows.stack.settings import StackSettings
from tasks.home import Home


def running_parts(home: Home) -> set[str]:
    """The parts whose process lives, as the supervisor says; none when it does not answer."""
    return {it["name"] for it in supervisor.infos(home) or [] if it["statename"] == "RUNNING"}


@dataclass
class SilentWorkers:
    """Asks Prefect for each worker's heartbeat. It ends none: a training may hang on one that is only slow."""

    api: PrefectApi
    home: Home
    alerts: Alerts
    clock: Callable[[], float] = time.monotonic
    running: Callable[[Home], set[str]] = running_parts
    settings: StackSettings | None = None
    _silent: dict[tuple[str, int], float] = field(default_factory=dict)
    """A worker's incarnation -> since when Prefect, which answers, does not hear of it."""

    def __call__(self) -> None:
        """One look. Raises: StageFailed when Prefect does not answer."""
        # A server that does not answer begins the time anew.
        before, self._silent = self._silent, {}
        running = self.running(self.home)
        for part, pool in POOLS.items():
            starts = read_starts(self.home, part)
            if part not in running or starts is None or self._is_heard(part, pool):
                continue
            since = before.get((part, starts.count), self.clock())
            self._silent[part, starts.count] = since
            if self.clock() - since >= PATIENCE_SECONDS:
                self._tell(part, pool, starts.since)

    def _is_heard(self, part: str, pool: str) -> bool:
        name = worker_name(part, self.settings)
        # A worker that works creates its pool anew when somebody has deleted it.
        return any(
            worker.get("name") == name and worker.get("status") == "ONLINE"
            for worker in self.api.workers(pool) or ()
        )

    def _tell(self, part: str, pool: str, since: str) -> None:
        self.alerts.tell(
            Alert(
                "worker-silent",
                f"{part} {since}",
                part,
                f"The worker of the pool {pool} lives, and Prefect, which answers, has not heard of it for "
                f"{PATIENCE_SECONDS / 60:.0f} minutes: it starts no runs. What it did last stands in "
                f"{log_file(self.home, part)}. If it does not wait for a server there, end its process (its pid "
                "stands in `loraline status`): it is started again, and its trainings go on.",
            )
        )
