"""One promotion of a model at a time: a kernel file lock on one machine, PostgreSQL's advisory lock across several."""

import ipaddress
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
from tasks.stack import is_in_postgresql, read_stack
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
_LOOPBACK = "localhost"


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
    with ExitStack() as stack:
        held: Held = _FileHeld()
        if database is None:
            folders = lock_folders(tracker)
        else:
            held = stack.enter_context(_postgresql(database, name, wait_seconds))
            # Whoever has only the server's address, as a shell on its machine, knows no other lock.
            folders = _folders(tracker)
        for folder in folders:
            stack.enter_context(_file(folder, name, wait_seconds))
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


def lock_folders(tracker: Tracker) -> list[Path]:
    """Where all processes of this machine that use the registry meet; to be locked in this order.

    They follow from the registry, whatever home a process has: the folder of the SQLite file, and one
    for the port of the MLflow server before it. Whoever knows only one of the two still meets those who
    know both.

    Raises: StageFailed when processes of other machines use the registry, too.
    """
    if folders := _folders(tracker):
        return folders
    raise StageFailed(
        f"MLflow is at {without_passwords(tracker.uri)}, where several machines can promote at once, and "
        "a file lock of this machine does not hold the others back. Nothing was moved. Set "
        f"{LOCK_DATABASE}=postgresql://user:password@host/database on every machine (any database of the "
        "stack will do, no table is made), or promote on the machine that runs the MLflow server: in the "
        "folder of its stack (--home), or by a loopback address where it listens on one."
    )


def _folders(tracker: Tracker) -> list[Path]:
    """None for a server that is, as far as one can see, on another machine."""
    database, address = _sqlite_file(tracker.uri), _address(tracker.uri)
    own = address is not None and address == _served(tracker.home)
    if own and not is_in_postgresql(tracker.home):
        # This home's server, whatever address it listens on: its file is known.
        database = tracker.home.mlflow / "mlflow.db"
    port = _loopback_port(address)
    if database is not None:
        folder = database.resolve().parent
        if port is None:
            port = _loopback_port(_served(Home(folder.parent)))
        return [folder] if port is None else [folder, _server_folder(port)]
    return [] if port is None else [_server_folder(port)]


def _sqlite_file(uri: str) -> Path | None:
    parts = urlsplit(uri)
    return Path(parts.path[1:]) if parts.scheme.partition("+")[0] == "sqlite" else None


def _address(uri: str) -> tuple[str, int] | None:
    """Host and port of an MLflow server. Whatever loopback is called, it is this machine."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    host = _LOOPBACK if _is_loopback(parts.hostname) else parts.hostname
    return host, parts.port or {"http": 80, "https": 443}[parts.scheme]


def _is_loopback(host: str) -> bool:
    try:
        return host == _LOOPBACK or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _loopback_port(address: tuple[str, int] | None) -> int | None:
    return address[1] if address is not None and address[0] == _LOOPBACK else None


def _served(home: Home) -> tuple[str, int] | None:
    """The MLflow server that runs for a home. Nobody is asked: one that restarts counts, too."""
    server = read_stack(home).get("mlflow")
    return None if server is None or not server.lives else _address(server.url)


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
