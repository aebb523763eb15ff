"""Where Prefect's database is, said to its driver: asyncpg knows a part of what libpq reads in an address.

The rest it reads from variables (its `connect_utils`), or nowhere; what it is given beyond that it refuses.
"""

from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from flows.stack.settings import POSTGRES
from tasks.errors import UserError

SQLALCHEMY = "PREFECT_SERVER_DATABASE_SQLALCHEMY_"
"""What Prefect's settings of its connections begin with."""
_KEYWORDS = {
    "sslmode": "ssl",
    **{
        name: name
        for name in ("target_session_attrs", "krbsrvname", "passfile", "user", "password")
    },
}
"""libpq's parameter -> that of `asyncpg.connect`, in the same words."""
_FILES = {
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcrl": "PGSSLCRL",
}
_VARIABLES = {
    **_FILES,
    "sslnegotiation": "PGSSLNEGOTIATION",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "application_name": f"{SQLALCHEMY}CONNECT_ARGS_APPLICATION_NAME",
}
"""libpq's parameter -> the variable that says it to Prefect's server."""
_LIBPQ_ONLY = frozenset(
    {
        "channel_binding",
        "connect_timeout",
        "fallback_application_name",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
    }
)
"""Without them Prefect's server reaches the same database; how long it waits are settings of its own."""


def prefect_address(url: str) -> tuple[str, dict[str, str]]:
    """The address as SQLAlchemy reads it, and the variables beside it, of one that libpq reads.

    Raises: UserError naming what cannot be said to asyncpg.
    """
    parts = urlsplit(url)
    query: dict[str, str] = {}
    variables: dict[str, str] = {}
    for name, value in parameters(parts.query).items():
        if name in _FILES and value != "system" and not Path(value).is_absolute():
            raise UserError(
                f"{POSTGRES} has {name}={value}, and each part starts in a folder of its own. Write the whole "
                "path of the file."
            )
        if (name, value) == ("sslrootcert", "system"):
            variables[f"{SQLALCHEMY}CONNECT_ARGS_TLS_ENABLED"] = "true"
        elif name in _KEYWORDS:
            query[_KEYWORDS[name]] = value
        elif name in _VARIABLES:
            variables[_VARIABLES[name]] = value
        elif name not in _LIBPQ_ONLY and (name, value) != ("gssencmode", "disable"):
            raise UserError(
                f"{POSTGRES} has the parameter {name}, which cannot be said to asyncpg, the driver of Prefect's "
                "server. Take it out of the address, and set it for the user in PostgreSQL (ALTER ROLE ... SET) "
                "where it is a setting of sessions."
            )
    return urlunsplit(("postgresql+asyncpg", *parts[1:3], encoded(query), "")), variables


def parameters(query: str) -> dict[str, str]:
    """An address's parameters as libpq reads them: a plus is a plus."""
    return dict(parse_qsl(query.replace("+", "%2B")))


def encoded(query: dict[str, str]) -> str:
    """The same, to be read by libpq and by SQLAlchemy alike."""
    return urlencode(query, safe="/", quote_via=quote)
