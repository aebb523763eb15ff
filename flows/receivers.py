"""Who is told of a promotion that was made on the command line: the server in use, and the webhooks."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from flows.connection import user_connection
from tasks.home import Home
from tasks.stack import running

if TYPE_CHECKING:
    from tasks.promotion.notices import Notices


def command_notices(home: Home) -> "Notices":
    """The outbox of the home, for a command that runs without a flow; no server is started for it."""
    from tasks.promotion.notices import notices_of

    environ = dict(os.environ)
    if user_connection(os.environ, Path.cwd(), Path.home()) is not None:
        # The address and the credentials may stand in a profile; Prefect knows where it keeps them.
        from tasks.promotion.task import prefect_client

        api, credentials = prefect_client()
        return notices_of(home, prefect_api=api, environ={**environ, **credentials})
    server = running(home, "prefect")
    if server is not None and (password := environ.get("PREFECT_SERVER_API_AUTH_STRING")):
        environ.setdefault("PREFECT_API_AUTH_STRING", password)
    return notices_of(home, prefect_api=server.url if server else None, environ=environ)
