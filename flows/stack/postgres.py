"""Create the stack's two databases on a PostgreSQL server, or say what its administrator has to do."""

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flows.stack.databases import (
    MLFLOW_DATABASE,
    PREFECT_DATABASE,
    database_address,
    server_place,
)
from flows.stack.settings import POSTGRES
from tasks.addresses import without_passwords
from tasks.errors import StageFailed, UserError

if TYPE_CHECKING:
    import psycopg

OLDEST_VERSION = 14
EXTENSION = "pg_trgm"
"""Of PostgreSQL's own: Prefect's pages search names with it."""


def ready_databases(server: str) -> list[str]:
    """Make sure that both databases are there; returns the names of those that were created.

    Raises: UserError with the SQL to ask for when this user may not, StageFailed when nobody answers.
    """
    user = urlsplit(server).username or "the stack's user"
    created = []
    # `postgres` is there for this purpose; `template1` always is, but two of these would wait for each other.
    with _connected(database_address(server, "postgres")) as connection:
        version = connection.info.server_version // 10_000
        if version < OLDEST_VERSION:
            raise UserError(
                f"PostgreSQL at {server_place(server)} is version {version}; Prefect needs {OLDEST_VERSION} or later."
            )
        for name in (PREFECT_DATABASE, MLFLOW_DATABASE):
            if connection.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s", (name,)
            ).fetchone():
                continue
            _execute(connection, f"CREATE DATABASE {name}", server, needed_sql(user))
            created.append(name)
    with _connected(database_address(server, PREFECT_DATABASE)) as connection:
        present = connection.execute(
            "SELECT 1 FROM pg_extension WHERE extname = %s", (EXTENSION,)
        ).fetchone()
        if not present:
            _execute(
                connection,
                f"CREATE EXTENSION IF NOT EXISTS {EXTENSION}",
                server,
                needed_sql(user, created=True),
            )
    return created


def needed_sql(user: str, *, created: bool = False) -> str:
    """What an administrator types into psql; with `created`, only what is missing in the databases."""
    owner = '"' + user.replace('"', '""') + '"'
    lines = [
        f"CREATE DATABASE {PREFECT_DATABASE} OWNER {owner};",
        f"CREATE DATABASE {MLFLOW_DATABASE} OWNER {owner};",
    ]
    return "\n".join(
        [
            *([] if created else lines),
            f"\\connect {PREFECT_DATABASE}",
            f"CREATE EXTENSION IF NOT EXISTS {EXTENSION};",
        ]
    )


def _connected(address: str) -> "psycopg.Connection[Any]":
    try:
        import psycopg
    except ImportError as error:
        raise UserError(
            f"{POSTGRES} is set, and the driver is missing: pip install 'loraline[postgresql]'"
        ) from error
    try:
        return psycopg.connect(address, connect_timeout=10, autocommit=True)
    except psycopg.Error as error:
        raise StageFailed(
            f"PostgreSQL at {server_place(address)}, named by {POSTGRES}, cannot be used "
            f"({without_passwords(str(error).strip())}). Start it, or correct the setting."
        ) from None


def _execute(connection: "psycopg.Connection[Any]", sql: str, server: str, ask: str) -> None:
    import psycopg

    try:
        connection.execute(sql.encode())
    except psycopg.errors.DuplicateDatabase:
        # Another `up` on the same server was faster.
        pass
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported) as error:
        raise UserError(
            f"The user of {POSTGRES} may not do this on {server_place(server)}: {sql} "
            f"({str(error).splitlines()[0]}). Ask an administrator of that server to run the lines below "
            f"in psql, then start again:\n{ask}"
        ) from None
