"""The supervisor's configuration file, written anew by each `loraline up`."""

import hashlib
import os
import re
import sys
from pathlib import Path

from flows.stack.leftovers import PART
from flows.stack.parts import Part
from flows.stack.settings import folder
from tasks.errors import UserError
from tasks.home import Home

LOG_BYTES = 10 * 1024 * 1024
"""A part's log is rotated at this size."""
LOG_COPIES = 5
"""So many older ones are kept beside it: 60 MiB a part at most."""
STEADY_SECONDS = 5
"""A part that lives so long has started. One that dies sooner is started again after one second more
than the time before; one that dies later, at once, and its process then pauses (`part_process`)."""


LONGEST_SOCKET = 90
"""Bytes of a socket's path: the kernel takes 107, and the supervisor first appends its pid to it."""
SHORT_FOLDER = Path("/tmp")


def log_file(home: Home, part: str) -> Path:
    """What a part prints."""
    return home.logs / f"{part}.log"


def socket_file(home: Home) -> Path:
    """Where the supervisor listens: in the home, or where that is too deep for a socket in a short folder.

    The same for every shell of this user, whatever its environment.

    Raises: UserError when the short folder is somebody else's.
    """
    path = folder(home) / "supervisor.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET:
        return path
    home_name = hashlib.sha256(str(home.root).encode()).hexdigest()[:16]
    own = SHORT_FOLDER / f"loraline-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    # In a folder that everybody writes to, another user could have been first.
    status = own.lstat()
    if own.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UserError(
            f"{own} must be a folder of this user with mode 700, and it is not: who may write there could "
            "stop the stack. Remove it, or use a state folder with a shorter path (--home)."
        )
    return own / f"{home_name}.sock"


def write_configuration(home: Home, parts: list[Part], socket: Path) -> Path:
    """Write `supervisord.conf`; returns its path."""
    path = folder(home) / "supervisord.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(configuration(home, parts, socket), encoding="utf-8")
    return path


def configuration(home: Home, parts: list[Part], socket: Path) -> str:
    """The file's text (supervisord.org, "Configuration file")."""
    user = "user = root\n" if os.getuid() == 0 else ""
    head = f"""\
; Written by `loraline up`; a change is lost with the next one.
[supervisord]
nodaemon = true
logfile = {_text(log_file(home, "supervisor"))}
logfile_maxbytes = {LOG_BYTES}
logfile_backups = {LOG_COPIES}
pidfile = {_text(folder(home) / "supervisord.pid")}
directory = {_text(folder(home))}
{user}
[unix_http_server]
file = {_text(socket)}
chmod = 0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""
    return head + "".join(_program(home, part) for part in parts)


def _program(home: Home, part: Part) -> str:
    # Servers read settings from where they stand: that is a folder of ours.
    where = home.root / part.name if part.name in ("prefect", "mlflow") else home.prefect
    where.mkdir(parents=True, exist_ok=True)
    return f"""
[program:{part.name}]
command = "{_text(Path(sys.executable))}" -P -m flows.stack.part_process {part.name}
environment = {PART}="{part.name}",PYTHONSAFEPATH="1",PYTHONUNBUFFERED="1"
directory = {_text(where)}
priority = {part.priority}
autostart = true
autorestart = true
startsecs = {STEADY_SECONDS}
; It never gives up: a full disk is emptied, a port is freed.
startretries = 1000000
stopsignal = TERM
stopwaitsecs = {part.stop_seconds}
stopasgroup = true
killasgroup = true
redirect_stderr = true
stdout_logfile = {_text(log_file(home, part.name))}
stdout_logfile_maxbytes = {LOG_BYTES}
stdout_logfile_backups = {LOG_COPIES}
"""


def _text(path: Path) -> str:
    """A path as the file's syntax has it. Raises: UserError for one that it cannot hold."""
    text = str(path)
    if re.search(r'["%;\n\r]|\s#', text):
        raise UserError(
            f"The path {text!r} has a sign that the supervisor's configuration cannot hold "
            '(", %, ;, a line break, or a # after a blank). Use another folder (--home).'
        )
    return text
