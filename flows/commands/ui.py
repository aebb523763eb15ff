"""`loraline ui`: this folder's Prefect and MLflow servers on loopback, until Ctrl-C."""

import argparse
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flows.connection import server_environment, user_connection
from flows.server_lock import ServerLock
from flows.servers import ServerProcess
from flows.signals import stop_signals
from tasks.addresses import without_passwords
from tasks.errors import UserError
from tasks.home import CLOSED, Home, home
from tasks.stack import Server, read_stack, refuse_own_sqlite, running, write_stack

ADDRESS = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    for server, default in (("prefect", 4200), ("mlflow", 5000)):
        parser.add_argument(
            f"--{server}-port",
            type=_port,
            default=default,
            metavar="PORT",
            help=f"port of the {server} server (default: {default})",
        )


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM; beside a running stack, say that it serves already.

    Raises: UserError when the servers cannot start, StageFailed when one of them ends by itself.
    """
    state = home()
    state.prepare()
    if (stack := served_by_stack(state)) is not None:
        print(stack, flush=True)
        sys.stderr.write(
            f"State    {state.root}\nThe stack of `loraline up` serves these pages; `loraline down` ends it.\n"
        )
        return 0
    _refuse_second(state)
    refuse_own_sqlite(state)
    lock = ServerLock(state)
    if not lock.acquire("loraline ui"):
        raise UserError(
            f"{lock.holder() or 'Another process'} has a Prefect server on this home's database "
            f"({state.prefect}), and two servers would corrupt each other's view of it. "
            "Start `loraline ui` when that has ended, or stop it with Ctrl-C; the next runs then "
            "share the server of `loraline ui`."
        )
    for port, option in (
        (args.prefect_port, "--prefect-port"),
        (args.mlflow_port, "--mlflow-port"),
    ):
        _refuse_taken(port, option)
    if args.prefect_port == args.mlflow_port:
        raise UserError(
            f"--prefect-port and --mlflow-port are both {args.mlflow_port}: choose two ports."
        )
    try:
        with (
            stop_signals(),
            serving(state, lock, args.prefect_port, args.mlflow_port) as processes,
        ):
            _greet(state, args.prefect_port, args.mlflow_port)
            while True:
                for process in processes:
                    if not process.lives():
                        raise process.failure("ended by itself")
                time.sleep(0.2)
    except KeyboardInterrupt:
        sys.stderr.write("\nBoth servers are stopped.\n")
    finally:
        lock.release()
    return 0


@contextmanager
def serving(
    state: Home, lock: ServerLock, prefect_port: int, mlflow_port: int
) -> Iterator[list[ServerProcess]]:
    """Both servers, healthy and named in `stack.json`, for the length of the block."""
    with ExitStack() as stack:
        prefect = start_prefect(state, lock, prefect_port)
        stack.callback(prefect.stop)
        prefect_url = f"http://{ADDRESS}:{prefect_port}/api"
        mlflow_url = f"http://{ADDRESS}:{mlflow_port}"
        mlflow = start_mlflow(state, mlflow_port)
        stack.callback(mlflow.stop)
        mlflow.wait_until(f"{mlflow_url}/health")
        prefect.wait_until(f"{prefect_url}/health")
        # Named last: a run that reads it may use both at once.
        write_stack(
            state,
            {
                "prefect": Server(prefect_url, prefect.pid),
                "mlflow": Server(mlflow_url, mlflow.pid),
            },
        )
        # Called first when the block ends, so that no run starts on servers that are ending.
        stack.callback(state.stack_file.unlink, missing_ok=True)
        yield [prefect, mlflow]


def start_prefect(state: Home, lock: ServerLock, port: int) -> ServerProcess:
    """The Prefect server with scheduler and user interface. `lock` must be held."""
    arguments = ["module", "prefect", "server", "start", "--host", ADDRESS, "--port", str(port)]
    return ServerProcess(
        "The Prefect server",
        arguments,
        environment=server_environment(state, os.environ, api_url=f"http://{ADDRESS}:{port}/api"),
        folder=state.prefect,
        log=state.logs / "prefect-server.log",
        lock=lock,
    )


def start_mlflow(state: Home, port: int) -> ServerProcess:
    """The MLflow tracking server and registry."""
    database = f"sqlite:///{state.mlflow / 'mlflow.db'}"
    arguments = ["mlflow", database, "server", "--host", ADDRESS, "--port", str(port)]
    artifacts = state.mlflow / "artifacts"
    state.mlflow.mkdir(CLOSED, parents=True, exist_ok=True)
    artifacts.mkdir(exist_ok=True)
    arguments += ["--backend-store-uri", database, "--default-artifact-root", str(artifacts)]
    arguments += ["--workers", "1"]
    environment = {
        name: value
        for name, value in os.environ.items()
        # Settings for another server, which this one would take for its own.
        if not name.startswith(("MLFLOW_TRACKING_", "MLFLOW_REGISTRY_", "MLFLOW_BACKEND_"))
    }
    environment |= state.environment()
    # Seven more processes, for features that are not used here.
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    return ServerProcess(
        "The MLflow server",
        arguments,
        environment=environment,
        folder=state.mlflow,
        log=state.logs / "mlflow-server.log",
    )


def served_by_stack(state: Home) -> str | None:
    """The lines that name the pages of a stack that runs on this home; None without one."""
    servers = read_stack(state)
    if not any(server.supervised and server.lives for server in servers.values()):
        return None
    # With the supervisor alive a server that is just away comes back at the same address.
    shown = {"prefect": "Prefect ", "mlflow": "MLflow  "}
    return "\n".join(
        f"{title} {servers[name].url.removesuffix('/api')}"
        for name, title in shown.items()
        if name in servers
    )


def _refuse_second(state: Home) -> None:
    server = running(state, "prefect")
    if server is not None:
        mlflow = running(state, "mlflow")
        urls = server.url.removesuffix("/api") + (f" and {mlflow.url}" if mlflow else "")
        raise UserError(
            f"The servers of {state.root} are already running at {urls} "
            f"({state.stack_file}). Use those, or stop them with Ctrl-C where they were started."
        )


def _refuse_taken(port: int, option: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise UserError(
                f"Port {port} of {ADDRESS} cannot be used ({error.strerror}). "
                f"Stop what listens there, or choose another with {option}."
            ) from error


def _greet(state: Home, prefect_port: int, mlflow_port: int) -> None:
    print(f"Prefect  http://{ADDRESS}:{prefect_port}", flush=True)
    print(f"MLflow   http://{ADDRESS}:{mlflow_port}", flush=True)
    lines = [f"State    {state.root}", "Runs started now use these servers. Ctrl-C stops them."]
    user = user_connection(os.environ, Path.cwd(), Path.home())
    if user is not None:
        lines.append(
            f"Note: {user.reason} names the Prefect server "
            f"{without_passwords(user.url)}, so runs go there and not here."
        )
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        lines.append(
            f"Note: MLFLOW_TRACKING_URI is {without_passwords(uri)}, so runs are tracked there and not here."
        )
    sys.stderr.write("\n".join(lines) + "\n")


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is not between 1 and 65535")
    return port
