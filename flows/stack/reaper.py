"""End runs in Prefect whose process is gone: the one who dies cannot say so.

A run is alive as long as the process that runs its flow is, which bears its id, however busy it is: no
heartbeat has to be kept up, and none can be missed. Workers bear the id too, and keep no run alive: one of
them, or what it started in a session of its own, may outlive all that could end it.
"""

import logging
import time
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flows.stack import leftovers
from flows.stack.api import Json, PrefectApi, utc
from flows.stack.memory import keep, recall
from flows.stack.parts import POOLS, worker_name
from flows.stack.settings import StackSettings, folder
from tasks.errors import StageFailed
from tasks.home import Home

RUNNING_SECONDS = 30.0
"""A running run without a process of its flow is dead after this: one that just ended is still reporting how."""
ORPHAN_GRACE_SECONDS = 10.0
"""For what outlived its run, between SIGTERM and SIGKILL: enough to end in order. A worker that noticed has
had its time for a checkpoint by then."""
CANCELLING_SECONDS = 12.0
"""A run that is told to end and still has processes loses them after this: its worker, which would end
them, may be gone, or they are deaf. So long a trainer has for the step that it is at and a checkpoint, which
takes an adapter's seconds; without it the one before stands. With the rhythm of two looks, and some
seconds for each, they are gone within 30 s."""
_DELETED = "DELETED"
"""No state of Prefect: somebody deleted the run, as on its page, while it ran."""
STRAY_SECONDS = {
    **{"CANCELLED": 5.0, "CRASHED": 20.0, "COMPLETED": 600.0, "FAILED": 600.0},
    _DELETED: 5.0,
}
"""A process whose run has ended so is ended after this: a child in a session of its own survives the
worker's kill, and keeps the GPU. What a run does after it was cancelled is wanted by nobody; one that ended
by itself has ended its workers, and may still deliver the log lines that a server was away for."""
LOOK_SECONDS = 5.0
"""Between two looks."""
PENDING_SECONDS = 75.0
"""A pending run is dead after this: a worker that took it is still starting its process."""
PENDING_ANYWHERE_SECONDS = 900.0
"""One that may be another machine's is dead after this: that machine may be, or it lost power before any
process of the run was seen."""
PENDING_CONTAINER_SECONDS = 7200.0
"""One that waits for a container is dead after this: an image or a node may take long to arrive, and whoever
was to start it may be gone. Nobody else gives it up: Prefect's launcher of jobs waits for no pod."""
AWAY = timedelta(minutes=12)
"""So long a silent worker's runs are its own: the network between two machines may be away for ten minutes. A
worker's last word may be half a minute older than that, and it comes back within one."""
RETURN_SECONDS = 600.0
"""After a time without answers, ours or the server's: it takes every machine for gone until its worker has
asked again, which it does ever more rarely while nobody answers."""
REMEMBERED = timedelta(days=1)
"""A worker that has been silent for longer is not waited for then."""
UNFINISHED = ("PENDING", "RUNNING", "CANCELLING")
"""States of a run that has a process, or should have."""
WORKER = "prefect.worker.name"
"""Label by which a worker marks a run before it starts its process (`prefect.workers.base`)."""
_log = logging.getLogger(__name__)


@dataclass
class Reaper:
    """Looks at all unfinished runs of this machine; what is missing for long enough is closed."""

    api: PrefectApi
    home: Home
    living: Callable[[], dict[str, bool]] = leftovers.living_flow_runs
    end_processes: Callable[[str, float], int] = leftovers.end_flow_run
    clock: Callable[[], float] = time.monotonic
    settings: StackSettings | None = None
    _missing: dict[str, float] = field(default_factory=dict)
    """Flow run -> when it was first seen without a process."""
    _over: dict[str, float] = field(default_factory=dict)
    """Flow run that should have no process any more -> since when."""
    _answers_since: float | None = None
    """When the server began to answer, None while it does not."""
    _seen: dict[str, int] = field(init=False)
    """Flow run that had a process on this machine -> which attempt it was. Kept in a file: whether a run is
    ours must be known after this machine was started anew, when another one's worker may run as well."""
    _kept: dict[str, int] = field(init=False)
    """What of it is in the file."""

    def __post_init__(self) -> None:
        found = recall(_memory(self.home))
        self._seen = self._kept = found if isinstance(found, dict) else {}

    def __call__(self) -> None:
        """One look. Raises: StageFailed when a server does not answer."""
        try:
            self._look()
        except StageFailed:
            self._answers_since = None
            raise

    def _look(self) -> None:
        unfinished = self.api.flow_runs({"state": {"type": {"any_": [*UNFINISHED]}}})
        if self._answers_since is None:
            self._answers_since = self.clock()
        living = self.living()
        self._note(unfinished, living)
        pools = self._pools() if unfinished else {}
        gone = []
        for run in unfinished:
            if run["id"] in living and run["state"]["type"] == "CANCELLING":
                self._missing.pop(run["id"], None)
                if self._is_over(run["id"], CANCELLING_SECONDS):
                    # At once, its grace is over: told to end, a flow would report itself as crashed.
                    self._end_processes(run["id"], "was to be cancelled", 0.0)
                    self._end(run)
            elif living.get(run["id"]) or (patience := self._patience(run, pools)) is None:
                self._missing.pop(run["id"], None)
            elif self._is_overdue(run, patience):
                gone.append(run)
        for run in gone:
            if run["id"] in living:
                # First, since the run that goes on where this one stopped wants the GPU and the checkpoints.
                self._end_processes(run["id"], "has lost its flow", ORPHAN_GRACE_SECONDS)
            self._end(run)
        self._missing = {
            run["id"]: self._missing[run["id"]] for run in unfinished if run["id"] in self._missing
        }
        self._end_strays(living.keys(), living.keys() - {run["id"] for run in unfinished})

    def _note(self, unfinished: list[Json], living: dict[str, bool]) -> None:
        here = {run["id"]: attempt_number(run) for run in unfinished if run["id"] in living}
        asked_for = living.keys() | {run["id"] for run in unfinished}
        before = {run: attempt for run, attempt in self._seen.items() if run in asked_for}
        self._seen = before | here
        if self._seen != self._kept:
            # On a full disk runs that are dead must be ended all the more; the next look writes it.
            with suppress(OSError):
                keep(_memory(self.home), self._seen)
                self._kept = self._seen

    def _end_strays(self, living: Set[str], ids: Set[str]) -> None:
        """Processes of runs that have ended. A run that this server never knew is another's."""
        known = {
            run["id"]: run["state"]["type"]
            for run in (self.api.flow_runs({"id": {"any_": sorted(ids)}}) if ids else [])
        }
        deleted = {run: _DELETED for run in ids - known.keys() if run in self._seen}
        ended = {run: kind for run, kind in (known | deleted).items() if kind in STRAY_SECONDS}
        self._over = {
            run_id: since
            for run_id, since in self._over.items()
            if run_id in ended or run_id in living
        }
        for run_id, kind in ended.items():
            if self._is_over(run_id, STRAY_SECONDS[kind]):
                left = CANCELLING_SECONDS - (self.clock() - self._over[run_id])
                unwanted = kind in ("CANCELLED", _DELETED)
                grace = max(0.0, left) if unwanted else ORPHAN_GRACE_SECONDS
                self._end_processes(run_id, "has ended", grace)

    def _is_over(self, run_id: str, patience: float) -> bool:
        return self.clock() - self._over.setdefault(run_id, self.clock()) >= patience

    def _end_processes(self, run_id: str, why: str, grace_seconds: float) -> None:
        count = self.end_processes(run_id, grace_seconds)
        self._over.pop(run_id, None)
        _log.warning("Flow run %s %s: %d processes of it were ended", run_id, why, count)

    def _patience(self, run: Json, pools: dict[str, "_Pool"]) -> float | None:
        """How many seconds it may have no process here; None: it is not ours, and nothing follows from that.

        Those of `loraline run` are in no pool: they have a lease instead (`flows.stack.abandoned`).
        """
        pool = pools.get(run.get("work_pool_name") or "")
        if pool is None:
            return None
        pending = run["state"]["type"] == "PENDING"
        # One that was tried again since may have its process elsewhere.
        was_here = attempt_number(run) <= self._seen.get(run["id"], -1)
        if was_here or pool.has_it_here((run.get("labels") or {}).get(WORKER)):
            return PENDING_SECONDS if pending else RUNNING_SECONDS
        if pending:
            return PENDING_CONTAINER_SECONDS if pool.in_containers else PENDING_ANYWHERE_SECONDS
        return None

    def _is_overdue(self, run: Json, patience: float) -> bool:
        first = self._missing.setdefault(run["id"], self.clock())
        return self.clock() - first >= patience

    def _pools(self) -> dict[str, "_Pool"]:
        ours = {worker_name(part, self.settings) for part in POOLS}
        assert self._answers_since is not None
        returning = self.clock() - self._answers_since < RETURN_SECONDS
        patience = REMEMBERED if returning else AWAY
        found = {}
        for pool in POOLS.values():
            if (workers := self.api.workers(pool)) is None:
                # Somebody deleted it, and Prefect does not know any more which runs were its own.
                continue
            others = {
                str(it.get("name")): it.get("status") == "ONLINE" or _may_return(it, patience)
                for it in workers
                if it.get("name") not in ours
            }
            found[pool] = _Pool(self._kind(pool) != "process", ours, others)
        return found

    def _kind(self, pool: str) -> str:
        try:
            return str(self.api.ask("GET", f"/work_pools/{pool}")["type"])
        except StageFailed as error:
            if "status 404" not in str(error):
                raise
            return "process"

    def _end(self, run: Json) -> None:
        end_run(self.api, run)
        self._missing.pop(run["id"], None)


@dataclass(frozen=True)
class _Pool:
    """Where the processes of a pool's runs may be."""

    in_containers: bool
    ours: set[str]
    """Names of this machine's workers."""
    others: dict[str, bool]
    """Worker of another machine -> whether what it started may still run."""

    def has_it_here(self, worker: str | None) -> bool:
        """Whether a living run that `worker` started has its process on this machine."""
        if self.in_containers:
            return False
        if worker in self.ours:
            return True
        return not self.others.get(worker or "", any(self.others.values()))


def end_run(api: PrefectApi, run: Json) -> None:
    """End a run without a process, and the flows inside it. Raises: StageFailed when Prefect does not answer."""
    before = run["state"]["type"]
    # Who was told to cancel it wanted it to end.
    kind = "CANCELLED" if before == "CANCELLING" else "CRASHED"
    api.end_flow_run(
        run["id"],
        kind,
        f"Its process is gone: it was {before.lower()}, and no process of this machine runs it.",
    )
    _log.warning(
        "Flow run %s (%s) was %s without a process: %s", run["id"], run["name"], before, kind
    )
    inside = {"parent_flow_run_id": {"any_": [run["id"]]}}
    for child in api.flow_runs({**inside, "state": {"type": {"any_": [*UNFINISHED]}}}):
        end_run(api, child)


def _may_return(worker: Json, patience: timedelta) -> bool:
    seen = worker.get("last_heartbeat_time")
    return bool(seen) and datetime.now(UTC) - utc(str(seen)) < patience


def attempt_number(run: Json) -> int:
    """Which attempt a run is at; Prefect counts one when it begins to run."""
    return int(run.get("run_count") or 0) + int(run["state"]["type"] == "PENDING")


def _memory(home: Home) -> Path:
    return folder(home) / "runs-of-this-machine.json"
