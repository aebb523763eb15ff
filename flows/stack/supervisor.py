"""The supervisor's process (supervisord.org): start it, find it, ask it, end it with all it started."""

import http.client
import os
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from flows.stack import leftovers
from flows.stack.configuration import log_file, socket_file, write_configuration
from flows.stack.parts import Part
from flows.stack.settings import folder
from flows.stack.stops import note_stop
from tasks.errors import StageFailed
from tasks.home import Home
from tasks.marked import environments

START_SECONDS = 60.0
"""Until the supervisor answers."""
ANSWER_SECONDS = 5.0
"""For one answer: one that is stopped (SIGSTOP) takes a connection and never says anything."""
MARGIN_SECONDS = 20.0
"""What the end of a stack may take beyond its parts' own times."""
Info = dict[str, Any]
"""A process as the supervisor tells of it: `name`, `statename`, `pid`, `start`, `description`."""


def find(home: Home) -> psutil.Process | None:
    """The living supervisor of this home. A pid file alone proves nothing: pids are given again."""
    return next((it for it in leftovers.processes(home) if _is_supervisor(it)), None)


def others(home: Home) -> list[Path]:
    """The state folders of the other stacks that this user runs on this machine."""
    return sorted(
        {
            Path(environment[leftovers.STACK])
            for process, environment in environments()
            if environment.get(leftovers.STACK, str(home.root)) != str(home.root)
            and _is_supervisor(process)
        }
    )


def start(home: Home, parts: list[Part]) -> "subprocess.Popen[bytes]":
    """Start the supervisor in a session of its own; returns once it answers.

    Raises: StageFailed with the end of its log.
    """
    listening = socket_file(home)
    configuration = write_configuration(home, parts, listening)
    listening.unlink(missing_ok=True)
    output = folder(home) / "supervisor-start.log"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "supervisor.supervisord"),
                *("--nodaemon", "--silent", "-c", str(configuration)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd=folder(home),
            env=environment(home, os.environ),
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while infos(home) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise StageFailed(
                f"The supervisor did not start. Last lines:\n{_tail(output)}\n"
                f"{_tail(log_file(home, 'supervisor'))}"
            )
        time.sleep(0.1)
    return process


def environment(home: Home, environ: Mapping[str, str]) -> dict[str, str]:
    """What the supervisor and all that it starts inherit, and are known by."""
    return {
        # Of the flow run that called us, if one did: the stack would end with it.
        **{name: value for name, value in environ.items() if not name.startswith("PREFECT__")},
        **home.environment(),
        leftovers.STACK: str(home.root),
    }


def infos(home: Home) -> list[Info] | None:
    """What the supervisor says of each part; None when it does not answer within `ANSWER_SECONDS`."""
    transport = _UnixTransport(socket_file(home))
    try:
        proxy: Any = xmlrpc.client.ServerProxy("http://localhost", transport)
        return list(proxy.supervisor.getAllProcessInfo())
    except (OSError, xmlrpc.client.Error, http.client.HTTPException):
        return None
    finally:
        transport.close()


def stop(home: Home, parts: list[Part]) -> int:
    """End the supervisor, its parts in reverse order, and whatever they started in sessions of their own.

    Returns how many processes had to be ended one by one, 0 when everything ended as it was asked to.
    """
    supervisor = find(home)
    if supervisor is not None:
        # First: whoever stops it, this command, systemd or a container, the runs that end now are not to blame.
        note_stop(home)
        # Parts of one priority end together, the priorities one after the other.
        longest: dict[int, int] = {}
        for part in parts:
            longest[part.priority] = max(longest.get(part.priority, 0), part.stop_seconds)
        try:
            supervisor.terminate()
            supervisor.wait(timeout=sum(longest.values()) + MARGIN_SECONDS)
        except psutil.NoSuchProcess:
            pass
        except psutil.TimeoutExpired:
            supervisor.kill()
    left = leftovers.end(leftovers.processes(home), grace_seconds=10)
    socket_file(home).unlink(missing_ok=True)
    (folder(home) / "supervisord.pid").unlink(missing_ok=True)
    home.stack_file.unlink(missing_ok=True)
    return left


class _UnixTransport(xmlrpc.client.Transport):
    """Speaks through a socket file; the supervisor's own transport would wait for ever."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = _UnixConnection("localhost", timeout=ANSWER_SECONDS)
        connection.path = self._path
        # Where `close` looks for it.
        self._connection = host, connection
        return connection


class _UnixConnection(http.client.HTTPConnection):
    path: Path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def _is_supervisor(process: psutil.Process) -> bool:
    try:
        return "supervisor.supervisord" in process.cmdline()
    except psutil.Error:
        return False


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-10:]
    except OSError:
        return ""
    return "\n".join(f"  {line}" for line in lines)
