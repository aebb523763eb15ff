"""A server's own process: it ends when the process that started it does, however that one ended.

`python -P -m flows.server_process embedded` serves Prefect's API on a free port of loopback, which
it prints; `... module NAME ARGUMENTS` runs the module NAME as `python -m` does.
"""

import json
import os
import runpy
import signal
import socket
import sys
import threading
import time

GRACE_SECONDS = 10.0
"""Between asking an orphan to end and ending it."""


def main(arguments: list[str]) -> None:
    """Serve until a signal comes or standard input closes."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    match arguments:
        case ["embedded"]:
            _serve_embedded()
        case ["module", name, *rest]:
            sys.argv = [name, *rest]
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        case _:
            sys.exit(f"usage: python -P -m {__spec__.name} embedded | module NAME ARGUMENTS")


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

    app = create_app(ephemeral=True, final=True)
    config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listener])


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
