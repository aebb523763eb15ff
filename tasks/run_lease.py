"""Who still writes a run: a kernel file lock per run, which the death of its process frees."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from tasks.files import is_locked
from tasks.home import Home

Kind = Literal["mlflow-run", "opening", "flow-run"]
"""A run in MLflow; the opening of one, whose id is not known yet; or an attempt of a run in Prefect whose process
the watchdog does not see: a worker's process bears its run's id."""


def of_attempt(flow_run: str, attempt: int) -> str:
    """The name of a lease: the next attempt may live already when this one's end is seen."""
    return f"{flow_run}.{attempt}"


def attempt_of(name: str) -> tuple[str, float]:
    """The flow run of a lease, and which attempt; infinite where the name says none, as it once did not."""
    flow_run, _, attempt = name.partition(".")
    return flow_run, float(attempt or "inf")


def take(home: Home, run_id: str, kind: Kind = "mlflow-run") -> FileLock:
    """Hold the run for as long as this process lives, or until `give_back`."""
    home.locks.mkdir(parents=True, exist_ok=True)
    lease = FileLock(home.locks / f"{kind}-{run_id}.lock")
    lease.acquire(timeout=0)
    return lease


@contextmanager
def until_done(home: Home, run_id: str, kind: Kind) -> Iterator[None]:
    """Hold it for a block, and give it back where the block ends well; else it is `abandoned`."""
    lease = take(home, run_id, kind)
    try:
        yield
    except BaseException:
        lease.release()
        raise
    give_back(home, run_id, lease, kind)


def note_stopped(home: Home, run_id: str) -> None:
    """Note that a person ended the process of a flow run."""
    _stopped(home, run_id).touch()


def was_stopped(home: Home, run_id: str) -> bool:
    """Whether a person ended the process of a flow run that is `abandoned`."""
    return _stopped(home, run_id).exists()


def give_back(home: Home, run_id: str, lease: FileLock, kind: Kind = "mlflow-run") -> None:
    """End the lease: the run has its final status."""
    lease.release()
    (home.locks / f"{kind}-{run_id}.lock").unlink(missing_ok=True)
    _stopped(home, run_id).unlink(missing_ok=True)


def is_held(home: Home, run_id: str) -> bool:
    """Whether a living process writes the MLflow run."""
    path = home.locks / f"mlflow-run-{run_id}.lock"
    # Asked of a file that is not there, it would be made.
    return path.exists() and is_locked(path)


def abandoned(home: Home, kind: Kind = "mlflow-run") -> Iterator[str]:
    """Runs whose process ended without giving them a status; each is named once, or until it could be closed."""
    for path in sorted(home.locks.glob(f"{kind}-*.lock")):
        lease = FileLock(path)
        try:
            lease.acquire(timeout=0)
        except Timeout:
            continue
        run_id = path.stem.removeprefix(f"{kind}-")
        yield run_id
        give_back(home, run_id, lease, kind)


def _stopped(home: Home, run_id: str) -> Path:
    return home.locks / f"stopped-{run_id}"
