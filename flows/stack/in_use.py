"""Refuse to start where something is in use already: the database, a port; and say by whom."""

import errno
import shlex
import socket

import psutil

from flows.server_lock import ServerLock
from flows.stack.leftovers import STACK
from flows.stack.settings import StackSettings
from tasks.errors import UserError
from tasks.home import Home


def refuse_in_use(home: Home, settings: StackSettings) -> None:
    """Raises: UserError naming what is in use, and who uses it."""
    lock = ServerLock(home)
    if not lock.acquire("loraline up"):
        raise UserError(
            f"{lock.holder() or 'Another process'} has a Prefect server on this home's database "
            f"({home.prefect}), and two servers would corrupt each other's view of it. Run `loraline up` "
            "when that has ended, or stop it with Ctrl-C."
        )
    lock.release()
    if settings.prefect_port == settings.mlflow_port:
        raise UserError(
            f"--prefect-port and --mlflow-port are both {settings.mlflow_port}: choose two ports."
        )
    for port, option in (
        (settings.prefect_port, "--prefect-port"),
        (settings.mlflow_port, "--mlflow-port"),
    ):
        _refuse_taken(settings.host, port, option)


def _refuse_taken(host: str, port: int, option: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"Port {port} of {host} cannot be used ({error.strerror}){_way_out(error, port, option)}"
            ) from error


def _way_out(error: OSError, port: int, option: str) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return ". The address is none of this machine's: choose another with --host."
    if error.errno == errno.EACCES:
        return f". Ports below 1024 are the administrator's: choose another with {option}."
    return f"{_listener(port)} Or choose another with {option}."


def _listener(port: int) -> str:
    """Who listens, where the system tells, and how to end that."""
    stop = "Stop what listens there."
    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr.port == port
                and connection.pid
            ):
                process = psutil.Process(connection.pid)
                command = " ".join(process.cmdline()[:5])
                if stack := _stack_of(process):
                    stop = (
                        f"It belongs to another stack: loraline down --home {shlex.quote(stack)}."
                    )
                return f": process {connection.pid} listens there ({command}). {stop}"
    except (psutil.Error, OSError):
        pass
    return f". {stop}"


def _stack_of(process: psutil.Process) -> str | None:
    try:
        environment: dict[str, str] = process.environ()
    except psutil.Error:
        return None
    return environment.get(STACK)
