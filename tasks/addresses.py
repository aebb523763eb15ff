"""Addresses of servers: shown without their passwords, and asked whether anybody answers."""

import re
import socket
import ssl
import urllib.error
import urllib.request
from urllib.parse import SplitResult, urlsplit, urlunsplit

_USER_INFO = re.compile(r"://[^/@\s]+@")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NOBODY_BEHIND = (502, 503, 504)
"""With these a proxy or a gateway says that it reaches no server."""
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


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


def unreachable(url: str, timeout_seconds: float = 5.0) -> str | None:
    """Why a client could not even speak to the server at this address, or None.

    One attempt. A server that is slow to answer, refuses what is asked, or bears a certificate that
    only its own clients are told to trust, is there. A database is asked for a connection and no more.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        return _why(error)
    try:
        if parts.scheme in ("http", "https"):
            status = answers(url, timeout_seconds)
            return f"its gateway answers with status {status}" if status in _NOBODY_BEHIND else None
        elif (port := _port(parts)) and parts.hostname:
            socket.create_connection((parts.hostname, port), timeout_seconds).close()
    except urllib.error.URLError as error:
        return None if isinstance(error.reason, ssl.SSLError) else _why(error.reason)
    except TimeoutError as error:
        # Of HTTP this is the wait for an answer: somebody took the request.
        return None if parts.scheme in ("http", "https") else _why(error)
    except (OSError, ValueError) as error:
        return _why(error)
    return None


def _port(parts: SplitResult) -> int | None:
    """The port of a network database; None for what is none, or names several hosts."""
    try:
        return parts.port or _PORTS.get(parts.scheme.partition("+")[0])
    except ValueError:
        return None


def _why(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no connection in time"
    return str(getattr(error, "strerror", None) or error)
