"""One promotion of a model at a time: a kernel file lock on one machine, PostgreSQL's advisory lock across several."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit

from filelock import FileLock, Timeout

from tasks.addresses import without_passwords
from tasks.advisory_lock import AdvisoryLock
from tasks.errors import StageFailed, UserError
from tasks.home import Home
from tasks.stack import read_stack
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
SERVER_LOCKS = Path("/tmp")
"""Not TMPDIR, which each process may have another one of: all that use a server must meet here."""
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
    with ExitStack() as stack:
        for folder in lock_folders(tracker):
            stack.enter_context(_file(folder, name, wait_seconds))
        yield _FileHeld()


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


def lock_folders(tracker: Tracker) -> list[Path]:
    """Where all processes of this machine that use the registry meet; to be locked in this order.

    They follow from the registry, whatever home a process has: the folder of the SQLite file, and one
    for the port of the MLflow server before it. Whoever knows only one of the two still meets those who
    know both.

    Raises: StageFailed when processes of other machines use the registry, too.
    """
    database, port = _sqlite_file(tracker.uri), _loopback_port(tracker.uri)
    if database is None and port is not None and port == _served_port(tracker.home):
        # This home's own server: its file is known.
        database = tracker.home.mlflow / "mlflow.db"
    if database is not None:
        folder = database.resolve().parent
        if port is None:
            port = _served_port(Home(folder.parent))
        return [folder] if port is None else [folder, _server_folder(port)]
    if port is not None:
        return [_server_folder(port)]
    raise StageFailed(
        f"MLflow is at {without_passwords(tracker.uri)}, where several machines can promote at once, and "
        "a file lock of this machine does not hold the others back. Nothing was moved. Set "
        f"{LOCK_DATABASE}=postgresql://user:password@host/database on every machine (any database of the "
        "stack will do, no table is made), or promote on the machine that runs the MLflow server, by its "
        "loopback address."
    )


def _sqlite_file(uri: str) -> Path | None:
    parts = urlsplit(uri)
    return Path(parts.path[1:]) if parts.scheme.partition("+")[0] == "sqlite" else None


def _loopback_port(uri: str) -> int | None:
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.hostname not in _LOOPBACK:
        return None
    return parts.port or {"http": 80, "https": 443}[parts.scheme]


def _served_port(home: Home) -> int | None:
    """The port of the MLflow server that runs for a home. Nobody is asked: one that restarts counts, too."""
    server = read_stack(home).get("mlflow")
    return None if server is None or not server.lives else _loopback_port(server.url)


def _server_folder(port: int) -> Path:
    """Of all users: homes of several of them may share a server, and no folder of one of them will do."""
    folder = SERVER_LOCKS / f"loraline-locks-{port}"
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid == os.geteuid():
        folder.chmod(0o1777)
    return folder


class _FileHeld:
    def check(self) -> None:
        """The kernel gives the lock back only when this process ends it."""


@contextmanager
def _file(folder: Path, name: str, wait_seconds: float) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"promotion-{quote(name, safe='')}.lock"
    lock = FileLock(path, timeout=wait_seconds, mode=0o666)
    try:
        lock.acquire()
    except Timeout as error:
        raise _busy(name, wait_seconds, f"the lock is {path}") from error
    try:
        yield
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
