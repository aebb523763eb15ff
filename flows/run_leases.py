"""Leases of the flow runs of a command line and of containers: the watchdog tells one that was killed by them.

That of a worker's process is told by the process, which bears the run's id from its start.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from filelock import FileLock

from tasks import run_lease
from tasks.errors import LoralineError
from tasks.home import Home

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_held: dict[str, tuple[Home, str, FileLock]] = {}
"""Flow run -> where the lease of its present attempt lies, its name, and the lease."""


def begin(home: Home) -> None:
    """Hold this flow run for as long as this process lives, or the block of `leased` lasts.

    Not one whose process the watchdog sees.
    """
    # Not before the connection is made: Prefect's settings are read when it is imported.
    from prefect.runtime import flow_run

    from flows.unattended import unattended

    run_id, mine = str(flow_run.id or ""), unattended()
    # Without an id it is the function that was called, and no run.
    if run_id and (mine is None or not is_seen(mine)):
        # A disk that takes nothing is told by the run itself, in words.
        with suppress(OSError):
            name = run_lease.of_attempt(run_id, flow_run.run_count)
            lease = run_lease.take(home, name, "flow-run")
            # Prefect's own retries are attempts of one process.
            if before := _held.pop(run_id, None):
                run_lease.give_back(*before, "flow-run")
            _held[run_id] = home, name, lease


def is_seen(run: "FlowRun") -> bool:
    """Whether the watchdog sees the process of a worker's run; not that of a container, nor where nobody knows."""
    from prefect.client.orchestration import get_client

    if run.work_pool_name is None:
        return True
    try:
        with get_client(sync_client=True) as client:
            return client.read_work_pool(run.work_pool_name).type == "process"
    except Exception:
        return False


def held() -> list[str]:
    """Ids of the flow runs of this process."""
    return list(_held)


@contextmanager
def leased() -> Iterator[None]:
    """For a block that runs a flow: its lease ends with it.

    Not where the block fails by an error that is not the flow's: Prefect may not know how the run ended then,
    and the watchdog closes it when this process has ended (`flows.stack.abandoned`).
    """
    try:
        yield
    except LoralineError:
        _give_back()
        raise
    _give_back()


def note_stopped() -> None:
    """Note that a person ends this process before its run can tell Prefect: that is no crash."""
    for home, name, _ in _held.values():
        run_lease.note_stopped(home, name)


def _give_back() -> None:
    while _held:
        _, (home, name, lease) = _held.popitem()
        run_lease.give_back(home, name, lease, "flow-run")
