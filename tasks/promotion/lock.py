"""One promotion of a model at a time: a kernel file lock on one machine, PostgreSQL's advisory lock across several."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit

from filelock import FileLock, Timeout

from tasks.addresses import without_passwords
from tasks.advisory_lock import AdvisoryLock
from tasks.errors import StageFailed, UserError
from tasks.tracking import Tracker

LOCK_DATABASE = "LORALINE_LOCK_DATABASE"
"""`postgresql://...`: the database whose advisory locks every machine of this registry uses."""
DATABASE_VARIABLES = (
    LOCK_DATABASE,
    "MLFLOW_BACKEND_STORE_URI",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL",
    "PREFECT_API_DATABASE_CONNECTION_URL",
)
"""Where the stack's database is looked for, in this order, after the tracking URI itself."""
WAIT_SECONDS = 60.0
"""A promotion holds the lock for a second or two: whoever waits longer waits for something stuck."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Held(Protocol):
    """A lock that is held."""

    def check(self) -> None:
        """Raises: StageFailed when the lock was lost, as with a database connection that broke."""


@contextmanager
def promoting(
    tracker: Tracker,
    name: str,
    *,
    environ: Mapping[str, str] | None = None,
    wait_seconds: float = WAIT_SECONDS,
) -> Iterator[Held]:
    """Hold the only right to move the aliases of `name` and to write its promotion log.

    Raises: StageFailed when another holds it for longer than `wait_seconds`, or when several machines
    use the registry and there is no PostgreSQL to keep them apart.
    """
    database = lock_database(tracker.uri, os.environ if environ is None else environ)
    if database is not None:
        with _postgresql(database, name, wait_seconds) as held:
            yield held
        return
    with _file(_lock_folder(tracker), name, wait_seconds) as held:
        yield held


def lock_database(uri: str, environ: Mapping[str, str]) -> str | None:
    """The PostgreSQL address that the stack is on, as libpq reads it; None where it is on none.

    Raises: UserError when LORALINE_LOCK_DATABASE is set to something else.
    """
    asked = environ.get(LOCK_DATABASE, "").strip()
    if asked and not asked.startswith("postgres"):
        raise UserError(
            f"{LOCK_DATABASE} is {without_passwords(asked)}, and only PostgreSQL's locks are used. "
            "Set it to postgresql://user:password@host/database, or take it away."
        )
    for url in (uri, *(environ.get(variable, "") for variable in DATABASE_VARIABLES)):
        scheme, sign, rest = url.strip().partition("://")
        if sign and scheme.partition("+")[0] in ("postgresql", "postgres"):
            # SQLAlchemy names the driver in the scheme.
            return f"postgresql://{rest}"
    return None


def _lock_folder(tracker: Tracker) -> Path:
    """Where all processes of this machine that use the registry meet.

    Raises: StageFailed when processes of other machines use it, too.
    """
    if tracker.owns_artifacts:
        return tracker.home.locks
    parts = urlsplit(tracker.uri)
    if parts.scheme == "sqlite":
        return Path(parts.path[1:]).parent
    if parts.hostname in _LOOPBACK:
        # Homes of several users may share a server: no folder of one of them will do.
        folder = Path(tempfile.gettempdir()) / f"loraline-locks-{parts.port}"
        folder.mkdir(exist_ok=True)
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(0o1777)
        return folder
    raise StageFailed(
        f"MLflow is at {without_passwords(tracker.uri)}, where several machines can promote at once, and "
        "a file lock of this machine does not hold the others back. Nothing was moved. Set "
        f"{LOCK_DATABASE}=postgresql://user:password@host/database on every machine (any database of the "
        "stack will do, no table is made), or promote on the machine that runs the MLflow server, by its "
        "loopback address."
    )


class _FileHeld:
    def check(self) -> None:
        """The kernel gives the lock back only when this process ends it."""


@contextmanager
def _file(folder: Path, name: str, wait_seconds: float) -> Iterator[Held]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"promotion-{quote(name, safe='')}.lock"
    lock = FileLock(path, timeout=wait_seconds, mode=0o666)
    try:
        lock.acquire()
    except Timeout as error:
        raise _busy(name, wait_seconds, f"the lock is {path}") from error
    try:
        yield _FileHeld()
    finally:
        lock.release()


class _PostgresqlHeld:
    def __init__(self, lock: AdvisoryLock, name: str) -> None:
        self._lock, self._name = lock, name

    def check(self) -> None:
        """Ask the database over the connection that holds the lock."""
        if not self._lock.answers():
            raise StageFailed(
                f"The connection to PostgreSQL that held the lock on {self._name!r} broke in the middle of "
                "the promotion. The next `loraline promote`, `rollback` or reconciling run completes what "
                "was begun."
            )


@contextmanager
def _postgresql(database: str, name: str, wait_seconds: float) -> Iterator[Held]:
    lock = AdvisoryLock(database, f"loraline promotion of {name}", application="loraline promotion")
    try:
        if not lock.acquire(wait_seconds):
            raise _busy(name, wait_seconds, f"the lock is PostgreSQL's at {lock.shown}")
        yield _PostgresqlHeld(lock, name)
    finally:
        lock.close()


def _busy(name: str, wait_seconds: float, where: str) -> StageFailed:
    return StageFailed(
        f"Another promotion or rollback of {name!r} has held the lock for {wait_seconds:g} s ({where}). "
        "Nothing was moved; try again when it is done."
    )
