"""Who still writes an MLflow run: a kernel file lock per run, which the death of its process frees."""

from collections.abc import Iterator

from filelock import FileLock, Timeout

from tasks.home import Home

_PREFIX, _SUFFIX = "mlflow-run-", ".lock"


def take(home: Home, run_id: str) -> FileLock:
    """Hold the run for as long as this process lives, or until `give_back`."""
    home.locks.mkdir(parents=True, exist_ok=True)
    lease = FileLock(home.locks / f"{_PREFIX}{run_id}{_SUFFIX}")
    lease.acquire(timeout=0)
    return lease


def give_back(home: Home, run_id: str, lease: FileLock) -> None:
    """End the lease: the run has its final status."""
    lease.release()
    (home.locks / f"{_PREFIX}{run_id}{_SUFFIX}").unlink(missing_ok=True)


def abandoned(home: Home) -> Iterator[str]:
    """Runs whose process ended without giving them a status; each is named once."""
    for path in sorted(home.locks.glob(f"{_PREFIX}*{_SUFFIX}")):
        lease = FileLock(path)
        try:
            lease.acquire(timeout=0)
        except Timeout:
            continue
        run_id = path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
        yield run_id
        give_back(home, run_id, lease)
