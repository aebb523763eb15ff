"""Addresses of servers: shown without their passwords, and asked whether anybody answers."""

import re
import socket
import ssl
import urllib.error
import urllib.request
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

# A word from `://` on, or up to the next address of a list in it.
_ADDRESS = re.compile(r"""://((?:(?![,;|"'<>()][a-z][a-z0-9+.-]*://)\S)+)""", re.IGNORECASE)
_HOST = re.compile(r"(?:\[[^\]]*\]|[^:@\[\]]*)(?::\d*)?")
_PASSWORD = re.compile(r"""(passw(?:or)?d)=(?:'[^']*'|"[^"]*"|[^\s&]+)""", re.IGNORECASE)
_BADLY_ENCODED = re.compile(r"\s|%(?![0-9a-f]{2})|%00", re.IGNORECASE)
_OF_A_USER = ("user", "password", "sslpassword")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NOBODY_BEHIND = (502, 503, 504)
"""With these a proxy or a gateway says that it reaches no server."""
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


WHAT_TO_ENCODE = (
    "Percent-encode what its user name and its password have of @ : / ? # [ ] % and spaces: @ is %40, "
    "/ is %2F, % is %25."
)
"""The way out where `is_ambiguous` says yes."""


def without_passwords(text: str) -> str:
    """The text with `://user:password@` and `password=...` taken out of every address in it.

    A password may have unencoded signs: up to the last `@` of the word all of it goes, a path and its host too.
    Not in an address of the web, whose path may have an `@`: there a password with a `/` and digits before
    it looks like a port.
    """
    return _PASSWORD.sub(r"\1=", _ADDRESS.sub(_without_user, text))


def _without_user(found: re.Match[str]) -> str:
    address = found[1]
    authority = re.split("[/?#]", address, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if at and ":" not in user:
        # A name or a token: what comes after the host is a path, and may have an `@` of its own.
        return f"://{address[len(user) + 1 :]}"
    web = (
        found.string[max(0, found.start() - 5) : found.start()].lower().endswith(("http", "https"))
    )
    if ":" not in authority or (web and _HOST.fullmatch(authority)):
        return found[0]
    return f"://{address.rpartition('@')[2]}"


def with_signs_encoded(url: str) -> str:
    """The same address of a database with `#`, `?`, `[` and `]` of its password percent-encoded.

    Drivers take them as they stand (libpq looks for `@` and `/` alone), and `urlsplit` does not.
    """
    scheme, mark, rest = url.partition("://")
    user, at, behind = rest.partition("@")
    if not at or ":" not in user or "/" in user or re.search(r"\?\w+=", user):
        return url
    user = re.sub(r"[#?[\]]", lambda sign: quote(sign[0]), user)
    return f"{scheme}{mark}{user}@{behind}"


def is_ambiguous(url: str) -> bool:
    """Whether an unencoded sign in its user name or password has a database's address read in several ways.

    Its driver then takes a part of the password for the host, or quotes it in a message of its own
    (postgresql.org, "Connection URIs").
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return True
    # Not as `urlsplit` has it, which leaves tabs and line ends away.
    authority = re.split("[/?#]", url.partition("://")[2], maxsplit=1)[0]
    user, _, hosts = authority.rpartition("@")
    parameters = parts.query.split("&")
    named = [it for it in parameters if it.partition("=")[0] in _OF_A_USER]
    # Users of managed servers have an `@`. Without a path libpq takes it for the one before the host.
    others = [it for it in parameters if it not in named or not parts.path]
    return (
        any(_BADLY_ENCODED.search(it) for it in (authority, *named))
        or any("@" in it for it in (user, parts.path, parts.fragment, *others))
        or not all(_HOST.fullmatch(host) for host in hosts.split(","))
    )


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
