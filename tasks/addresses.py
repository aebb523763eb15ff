"""Addresses of servers: shown without their passwords, and asked whether anybody answers."""

import re
import urllib.error
import urllib.request
from urllib.parse import urlsplit, urlunsplit

_USER_INFO = re.compile(r"://[^/@\s]+@")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def without_passwords(text: str) -> str:
    """The text with `://user:password@` taken out of every address in it."""
    return _USER_INFO.sub("://", text)


def answers(url: str, timeout_seconds: float = 10.0) -> int:
    """The HTTP status with which somebody answers, were it only to ask who we are.

    Credentials in the address are not sent: this asks whether there is a server, not what it holds.

    Raises: OSError or ValueError when nobody answers.
    """
    parts = urlsplit(url)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    # A proxy of the user's knows nothing of this machine's own servers.
    handlers = [urllib.request.ProxyHandler({})] if parts.hostname in _LOOPBACK else []
    try:
        with urllib.request.build_opener(*handlers).open(bare, timeout=timeout_seconds) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
