"""A server's own process: it ends when the process that started it does, however that one ended.

`python -P -m flows.server_process embedded` serves Prefect's API on a free port of loopback, which
it prints; `... module NAME ARGUMENTS` runs the module NAME as `python -m` does; `... mlflow DATABASE
ARGUMENTS` makes or upgrades MLflow's SQLite file and then runs `mlflow`.
"""

import asyncio
import json
import logging
import os
import runpy
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.own_pages import answer_own_pages_only
from flows.sqlite_transactions import begin_in_turn
from flows.unused_memory import keep_returning

if TYPE_CHECKING:
    import uvicorn

GRACE_SECONDS = 10.0
"""Between asking an orphan to end and ending it."""


def main(arguments: list[str]) -> None:
    """Serve until a signal comes or standard input closes."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    match arguments:
        case ["embedded"]:
            _serve_embedded()
        case ["module", name, *rest]:
            if name == "prefect":
                prepare_prefect()
            become(name, rest)
        case ["mlflow", database, *rest]:
            _prepare(database)
            become("mlflow", rest)
        case _:
            sys.exit(
                f"usage: python -P -m {__spec__.name} embedded | module NAME ARGUMENTS | "
                "mlflow DATABASE ARGUMENTS"
            )


def prepare_prefect() -> None:
    """What Prefect's server lacks, for the one that starts in this process."""
    begin_in_turn()
    answer_own_pages_only()


def become(module: str, arguments: Sequence[str]) -> None:
    """Run the module in this process as `python -m` does, until it ends."""
    keep_returning()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _prepare(database: str) -> None:
    """Its tables are made or upgraded whole or not at all, which MLflow's server does not know how to do."""
    from tasks.errors import LoralineError
    from tasks.home import home
    from tasks.tracking import Tracker

    try:
        _ = Tracker(home(), database).client
    except LoralineError as error:
        sys.exit(str(error))


def _serve_embedded() -> None:
    """Prefect's API without user interface and scheduler, as Prefect's own temporary server.

    That one (prefect.server.api.server.SubprocessASGIServer) is not used because Ctrl-C reaches it
    together with the flow, which then cannot report how it ended, and because it outlives a killed
    parent.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    # Bound but not yet listening: nobody else can take the port, and early clients are refused.
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)

    import uvicorn
    from prefect.server.api.server import create_app

    prepare_prefect()
    app = create_app(ephemeral=True, final=True)
    config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=5)
    asyncio.run(_serve(uvicorn.Server(config), listener))


async def _serve(server: "uvicorn.Server", listener: socket.socket) -> None:
    forgetting = asyncio.create_task(_forget_old_runs(server))
    try:
        await server.serve(sockets=[listener])
    finally:
        forgetting.cancel()


async def _forget_old_runs(server: "uvicorn.Server") -> None:
    """Delete what ended before Prefect's retention period: its temporary servers leave that to standing ones.

    Where every run has a server of its own there is no other, and the database would grow for ever.
    """
    from prefect.server.database import provide_database_interface
    from prefect.server.services.db_vacuum import vacuum_old_flow_runs

    while not server.started:
        await asyncio.sleep(0.2)
    try:
        await vacuum_old_flow_runs(db=provide_database_interface())
    except Exception:
        # The run that this server is here for must not suffer; the next one's server tries again.
        logging.getLogger(__name__).exception("Old runs could not be deleted")


def end_with_parent() -> None:
    """Wait for standard input, a pipe from the parent, to close; then end the whole process group."""
    while os.read(0, 4096):
        pass
    # The group: MLflow's server runs in a child.
    group = os.getpgid(0)
    os.killpg(group, signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
