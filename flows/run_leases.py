"""Leases of the flow runs of a command line: the watchdog tells one that was killed by them.

A worker's run is told by its process, which bears the run's id from its start.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from filelock import FileLock

from tasks import run_lease
from tasks.errors import LoralineError
from tasks.home import Home

_held: dict[str, tuple[Home, FileLock]] = {}


def begin(home: Home, run_id: str) -> None:
    """Hold the flow run for as long as this process lives, or the block of `leased` lasts."""
    if run_id not in _held:
        # A disk that takes nothing is told by the run itself, in words.
        with suppress(OSError):
            _held[run_id] = home, run_lease.take(home, run_id, "flow-run")


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
    for run_id, (home, _) in _held.items():
        run_lease.note_stopped(home, run_id)


def _give_back() -> None:
    while _held:
        run_id, (home, lease) = _held.popitem()
        run_lease.give_back(home, run_id, lease, "flow-run")
