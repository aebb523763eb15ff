"""Which Prefect a run talks to, decided before prefect is imported.

The user's own choice first, then the servers of `loraline ui`, then a server of our own for the
length of the run (the embedded server).
"""

import os
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.server_lock import ServerLock
from flows.servers import embedded_prefect
from tasks.addresses import unreachable, without_passwords
from tasks.errors import StageFailed
from tasks.home import CLOSED, Home
from tasks.stack import Server, read_stack, running

Say = Callable[[str], None]
UI_URL = "http://127.0.0.1:4200"
"""Where `loraline ui` shows, later, what an embedded server recorded."""

ORIGINS = ("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS")
"""Prefect's setting under its two names: whose pages may call the API. A page of the server itself always may."""
RUNS_KEPT_DAYS = 90
RETENTION = {
    # The default keeps flow runs, their logs and their artifacts for ever.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(RUNS_KEPT_DAYS * 86_400),
    # What a look at the registry each minute leaves in the default's week is most of the database.
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "P3D",
}
"""What our Prefect servers forget, and when: settings of theirs, in seconds and as an ISO 8601 duration."""


@dataclass(frozen=True)
class Connection:
    """The Prefect API of this run."""

    kind: Literal["user", "stack", "embedded"]
    url: str
    reason: str
    """Where the choice comes from, for a person."""


@contextmanager
def prefect_connection(
    home: Home, purpose: str, say: Say, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[Connection]:
    """Put the connection into this process's environment; keep an embedded server for the block.

    `purpose` is what others who wait for our embedded server are shown. `say` is told what takes
    long. `meanwhile` is called once the environment stands and, at best, while the server starts:
    the place to import prefect.

    Raises: StageFailed when the embedded server does not start.
    """
    chosen = user_connection(os.environ, Path.cwd(), Path.home())
    if chosen is not None:
        _refuse_unreachable(chosen)
        meanwhile()
        yield chosen
        return
    lock = ServerLock(home)
    try:
        stack = _stack_or_lock(home, lock, purpose, say)
        if stack is not None:
            reason = f"the server of `loraline ui` ({home.stack_file})"
            connection = Connection("stack", stack.url, reason)
            _enter(home, connection)
            meanwhile()
            yield connection
            return
        say("Starting a Prefect server for this run; `loraline ui` keeps one running.")
        with embedded_prefect(home, lock, server_environment(home, os.environ)) as (server, ready):
            connection = Connection(
                "embedded", server.url, f"a server of this run on {home.prefect}"
            )
            _enter(home, connection)
            meanwhile()
            ready()
            try:
                yield connection
            finally:
                _send_what_is_queued()
    finally:
        lock.release()


def _refuse_unreachable(connection: Connection) -> None:
    """Raises: StageFailed when nothing answers there; any answer, a refusal too, is left to Prefect."""
    why = unreachable(f"{connection.url.rstrip('/')}/health")
    if why is not None:
        raise StageFailed(
            f"The Prefect server {without_passwords(connection.url)}, named by {connection.reason}, "
            f"does not answer ({without_passwords(why)}). Start it, or take the setting away: loraline "
            "then starts a server of its own."
        )


def _stack_or_lock(home: Home, lock: ServerLock, purpose: str, say: Say) -> Server | None:
    """The server of `loraline ui`, or None with the lock held; waits for another run's server."""
    if read_stack(home) and running(home, "prefect") is None:
        say(f"{home.stack_file} names a Prefect server that does not answer; it is ignored.")
    told = False
    while True:
        if (server := running(home, "prefect")) is not None:
            return server
        if lock.acquire(purpose):
            return None
        if not told:
            say(
                f"Waiting for {lock.holder() or 'another process'}, whose Prefect server has this "
                f"home's database ({home.prefect}). With `loraline ui` running, any number of runs "
                "share one server."
            )
            told = True
        time.sleep(0.5)


def _enter(home: Home, connection: Connection) -> None:
    os.environ.update(client_environment(home, connection, os.environ))
    # A profile of the user's that names no server must not bring its other settings to ours.
    os.environ.pop("PREFECT_PROFILE", None)
    home.prefect.mkdir(CLOSED, parents=True, exist_ok=True)


def _send_what_is_queued() -> None:
    """Deliver the run's last log lines and events, which Prefect otherwise sends at exit."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=10)


def client_environment(
    home: Home, connection: Connection, environ: Mapping[str, str]
) -> dict[str, str]:
    """What makes a process a client of our own server, and write nothing in `~/.prefect`."""
    password = environ.get("PREFECT_API_AUTH_STRING") or environ.get(
        "PREFECT_SERVER_API_AUTH_STRING"
    )
    return {
        **({"PREFECT_API_AUTH_STRING": password} if password else {}),
        "PREFECT_API_URL": connection.url,
        # An embedded server ends with its run; its records are read on the server of `loraline ui`.
        "PREFECT_UI_URL": UI_URL
        if connection.kind == "embedded"
        else connection.url[: -len("/api")],
        "PREFECT_HOME": str(home.prefect),
        "PREFECT_PROFILES_PATH": str(home.prefect / "profiles.toml"),
    }


def server_environment(
    home: Home, environ: Mapping[str, str], *, api_url: str = ""
) -> dict[str, str]:
    """The whole environment of a Prefect server on this home's database, telemetry off."""
    environment: MutableMapping[str, str] = {
        name: value
        for name, value in environ.items()
        # The user's settings for another server: its database, its address, its profile.
        if not name.startswith(("PREFECT_API_", "PREFECT_SERVER_DATABASE_", "PREFECT_PROFILE"))
        and name not in ("PREFECT_UI_URL", "PREFECT_UI_API_URL", "PREFECT_SERVER_UI_API_URL")
        and name not in ("PREFECT_SERVER_API_HOST", "PREFECT_SERVER_API_PORT")
    }
    environment.update(home.environment())
    environment.update(
        {
            "PREFECT_HOME": str(home.prefect),
            "PREFECT_PROFILES_PATH": str(home.prefect / "profiles.toml"),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": (
                f"sqlite+aiosqlite:///{home.prefect / 'prefect.db'}"
            ),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            # Of the address that the page came from: a browser elsewhere, behind a proxy or a tunnel has another.
            "PREFECT_UI_API_URL": "/api",
            # Otherwise the pages are unpacked into site-packages, which may be read-only.
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home.prefect / "ui"),
            **RETENTION,
        }
    )
    if not any(environment.get(name) for name in ORIGINS):
        # Prefect's default has any page on the Internet call the API from the browser of whoever opens it.
        environment[ORIGINS[0]] = (api_url or UI_URL).removesuffix("/api")
    if api_url:
        environment["PREFECT_API_URL"] = api_url
    return dict(environment)


def user_connection(environ: Mapping[str, str], cwd: Path, user_home: Path) -> Connection | None:
    """The server that the user has chosen in any of the places where Prefect looks, else None.

    Prefect's order: environment, `.env`, `prefect.toml`, `pyproject.toml`, the active profile
    (docs.prefect.io, "Settings and profiles"). Everything is left to the user then.
    """
    if url := environ.get("PREFECT_API_URL"):
        return Connection("user", url, "PREFECT_API_URL")
    dotenv = _dotenv(cwd / ".env")
    if url := dotenv.get("PREFECT_API_URL"):
        return Connection("user", url, str(cwd / ".env"))
    project = _toml(cwd / "prefect.toml")
    if url := _text(project, "api", "url"):
        return Connection("user", url, str(cwd / "prefect.toml"))
    pyproject = _toml(cwd / "pyproject.toml")
    if url := _text(pyproject, "tool", "prefect", "api", "url"):
        return Connection("user", url, str(cwd / "pyproject.toml"))
    path = _profiles_path({**dotenv, **environ}, cwd, user_home, project, pyproject)
    profiles = _toml(path)
    name = environ.get("PREFECT_PROFILE") or _text(profiles, "active")
    if name and (url := _text(profiles, "profiles", name, "PREFECT_API_URL")):
        return Connection("user", url, f"the Prefect profile {name!r} in {path}")
    return None


def _profiles_path(
    settings: Mapping[str, str],
    cwd: Path,
    user_home: Path,
    project: Mapping[str, object],
    pyproject: Mapping[str, object],
) -> Path:
    named = (
        settings.get("PREFECT_PROFILES_PATH")
        or _text(project, "profiles_path")
        or _text(pyproject, "tool", "prefect", "profiles_path")
    )
    if named:
        return cwd / Path(named).expanduser()
    folder = settings.get("PREFECT_HOME")
    prefect_home = cwd / Path(folder).expanduser() if folder else user_home / ".prefect"
    return prefect_home / "profiles.toml"


def _toml(path: Path) -> dict[str, object]:
    # An unreadable file is for Prefect to complain about; here it names no server.
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _text(table: object, *keys: str) -> str | None:
    for key in keys:
        table = table.get(key) if isinstance(table, Mapping) else None
    return table if isinstance(table, str) and table else None


def _dotenv(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return {}
    pairs = (line.strip().removeprefix("export ").partition("=") for line in lines)
    return {
        key.strip(): value.strip().strip("'\"")
        for key, sign, value in pairs
        if sign and not key.startswith("#")
    }
