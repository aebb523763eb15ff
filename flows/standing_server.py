"""The Prefect server that schedules: it must stand already, for an embedded one ends with its run."""

import os
from pathlib import Path

from flows.connection import Connection, client_environment, user_connection
from tasks.addresses import unreachable, without_passwords
from tasks.errors import StageFailed
from tasks.home import CLOSED, Home
from tasks.stack import running


def enter_standing_server(home: Home) -> Connection:
    """Make this process a client of the user's own server, or of the one that runs for this home.

    To be called before prefect is imported.

    Raises: StageFailed when there is none, or it does not answer.
    """
    chosen = user_connection(os.environ, Path.cwd(), Path.home())
    if chosen is not None:
        if why := unreachable(f"{chosen.url.rstrip('/')}/health"):
            raise StageFailed(
                f"The Prefect server {without_passwords(chosen.url)}, named by {chosen.reason}, does "
                f"not answer ({without_passwords(why)}). Start it, or take the setting away."
            )
        return chosen
    server = running(home, "prefect")
    if server is None:
        raise StageFailed(
            f"No Prefect server runs for {home.root}, and schedules live on one. Start it with "
            "`loraline up`, or set PREFECT_API_URL to a server of yours."
        )
    connection = Connection("stack", server.url, f"the running stack ({home.stack_file})")
    os.environ.update(client_environment(home, connection, os.environ))
    # A profile of the user's that names no server must not bring its other settings to ours.
    os.environ.pop("PREFECT_PROFILE", None)
    home.prefect.mkdir(CLOSED, parents=True, exist_ok=True)
    return connection
