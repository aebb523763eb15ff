"""Tell an outage from a mistake, and bridge it: what is away for minutes must not cost a night."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tasks.database_outage import is_database_away
from tasks.errors import Interrupted, Preempted, ServerAway

SECONDS_BETWEEN: Sequence[float] = (15, 60, 180, 300)
"""Nine minutes in all, beside what clients bridge by themselves."""
_NAMES = (
    "ConnectError",
    "ConnectTimeout",
    "ConnectTimeoutError",
    "EndpointConnectionError",
    "NewConnectionError",
    "ReadError",
    "ReadTimeout",
    "ReadTimeoutError",
    "RemoteProtocolError",
    "ServerDisconnectedError",
    "WriteError",
)
"""What libraries call it whose errors are no ConnectionError of Python's."""
_BUSY = (429, 502, 503, 504)
_log = logging.getLogger(__name__)
T = TypeVar("T")


def is_outage(error: BaseException) -> bool:
    """Whether a server was away: somebody refused a connection, was silent, or said to come back later.

    A name that no DNS knows, a refused login or a missing page is a mistake, and waiting does not
    mend it.
    """
    links = list(_chain(error))
    if any(isinstance(link, Interrupted | Preempted) for link in links):
        return False
    if any(
        "getaddrinfo" in str(link) or "Name or service not known" in str(link) for link in links
    ):
        return False
    return any(_is_away(link) for link in links)


def bridged(
    work: Callable[[], T],
    *,
    doing: str,
    seconds: Sequence[float] = SECONDS_BETWEEN,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], object] = _log.warning,
) -> T:
    """Call `work`, and again after each pause, as long as an outage is what stops it.

    `work` must be one that may be begun again. Raises: what the last attempt raises; at once whatever
    is no outage.
    """
    for pause in seconds:
        try:
            return work()
        except Exception as error:
            if not is_outage(error):
                raise
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            say(f"Could not {doing}: {said} Trying again in {pause:.0f} s")
            sleep(pause)
    return work()


def _is_away(link: BaseException) -> bool:
    if isinstance(link, ConnectionError | TimeoutError | ServerAway):
        return True
    status = getattr(getattr(link, "response", None), "status_code", None)
    if status in _BUSY:
        return True
    if is_database_away(link):
        return True
    # requests has a ConnectionError of its own.
    name = type(link).__name__
    return name in _NAMES or (name == "ConnectionError" and isinstance(link, OSError))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        # What `raise ... from None` was raised amid is not its cause.
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
