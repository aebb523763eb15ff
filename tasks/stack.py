"""The servers that `loraline up` or `loraline ui` runs for one home, as named in its `stack.json`."""

import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tasks.errors import UserError
from tasks.home import Home

ServerName = Literal["prefect", "mlflow"]

HEALTH_PATHS: dict[ServerName, str] = {"prefect": "/health", "mlflow": "/health"}
"""Below the server's url: Prefect's ends in `/api`, MLflow's has no path."""

RESTART_SECONDS = 30.0
"""Time in which a supervised server that died answers again, on a busy machine."""


@dataclass(frozen=True)
class Server:
    """A running server on loopback."""

    url: str
    """What a client is given: `http://127.0.0.1:4200/api`, `http://127.0.0.1:5000`."""
    pid: int
    """Of the server, or of the supervisor that starts it again when it dies."""
    supervised: bool = False
    """Whether it comes back by itself: a client then waits for it, and looks for no other."""
    started: int | None = None
    """`start_ticks` of that process: after a reboot another one may bear its id. None: not known."""

    @property
    def lives(self) -> bool:
        """Whether that process has not ended."""
        now = start_ticks(self.pid)
        another = now is not None and self.started is not None and now != self.started
        return not another and process_lives(self.pid)


def write_stack(home: Home, servers: dict[ServerName, Server]) -> None:
    """Name the running servers. Renamed into place: a reader sees all of it or nothing."""
    text = json.dumps({name: asdict(server) for name, server in servers.items()}, indent=1)
    temporary = home.stack_file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.rename(home.stack_file)


def read_stack(home: Home) -> dict[str, Server]:
    """What `stack.json` says, alive or not; empty when it is absent or unreadable."""
    try:
        entries = json.loads(home.stack_file.read_text(encoding="utf-8"))
        return {
            name: Server(
                str(entry["url"]),
                int(entry["pid"]),
                bool(entry.get("supervised", False)),
                None if entry.get("started") is None else int(entry["started"]),
            )
            for name, entry in entries.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_in_postgresql(home: Home) -> bool:
    """Whether this home's stack keeps its data there, as it remembers."""
    try:
        settings = json.loads((home.root / "stack" / "settings.json").read_text(encoding="utf-8"))
        return bool(settings["database"] == "postgresql")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def refuse_own_sqlite(home: Home) -> None:
    """Raises: UserError when this home's stack keeps its data in PostgreSQL: who then opens the home's
    SQLite files finds no version there, and would collect what the registered ones need.
    """
    if is_in_postgresql(home):
        raise UserError(
            f"The stack of {home.root} keeps its data in PostgreSQL, and its servers do not answer. In this "
            "folder's SQLite files there would be no version and no champion. Start the stack with "
            "`loraline up`, or name another MLflow server with MLFLOW_TRACKING_URI."
        )


def running(home: Home, name: ServerName) -> Server | None:
    """The server if its process lives and it answers its health check, else None.

    One that is supervised is waited for, up to `RESTART_SECONDS`, and is named even when it does not
    answer then: it stays the only one that has the data.
    """
    server = read_stack(home).get(name)
    if server is None or not server.lives:
        return None
    deadline = time.monotonic() + (RESTART_SECONDS if server.supervised else 0.0)
    while not answers(server.url + HEALTH_PATHS[name]):
        if time.monotonic() >= deadline:
            return server if server.supervised and server.lives else None
        time.sleep(0.5)
    return server


def process_lives(pid: int) -> bool:
    """Whether a process of this id exists (of whatever user) and has not ended."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def answers(url: str, *, timeout_seconds: float = 5.0) -> bool:
    """Whether a GET of `url` answers 200. Proxies of the environment are not used for loopback."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_seconds) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def start_ticks(pid: int) -> int | None:
    """When a process of this machine began, in the kernel's ticks since it booted; None where unknown."""
    fields = _stat(pid)
    return int(fields[19]) if len(fields) > 19 else None


def _is_zombie(pid: int) -> bool:
    return _stat(pid)[:1] == ["Z"]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat (proc(5)) from the third one, the state, on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    # They follow the command name, which is in brackets and may itself hold brackets.
    return text.rpartition(")")[2].split()
