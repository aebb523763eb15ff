"""Where both servers keep their data: SQLite files of the home, or two databases of one PostgreSQL."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

from flows.stack.environment_file import environment_file
from flows.stack.prefect_address import encoded, parameters, prefect_address
from flows.stack.settings import POSTGRES, Database, StackSettings
from tasks.addresses import WHAT_TO_ENCODE, is_ambiguous
from tasks.errors import UserError
from tasks.home import Home

PREFECT_DATABASE = "loraline_prefect"
MLFLOW_DATABASE = "loraline_mlflow"
"""Two databases and not one: each server keeps its schema's version in a table `alembic_version`."""


@dataclass(frozen=True)
class Databases:
    """The addresses, as SQLAlchemy reads them. They may hold a password."""

    prefect: str
    mlflow: str
    lock: str = ""
    """What promoters on several machines lock in; empty with SQLite, where there is one machine."""
    server: str = ""
    """PostgreSQL's address without a database, as libpq reads it; empty with SQLite."""
    prefect_variables: Mapping[str, str] = field(default_factory=dict)
    """What Prefect's server must be told beside its address."""


def databases(home: Home, environ: Mapping[str, str]) -> Databases:
    """The stack's databases, as LORALINE_POSTGRES says.

    Raises: UserError when the setting is no address of a PostgreSQL server.
    """
    url = environ.get(POSTGRES, "").strip()
    if not url:
        return Databases(
            f"sqlite+aiosqlite:///{home.prefect / 'prefect.db'}",
            f"sqlite:///{home.mlflow / 'mlflow.db'}",
        )
    _refuse_unfit(url)
    prefect, variables = prefect_address(database_address(url, PREFECT_DATABASE))
    return Databases(
        prefect=prefect,
        mlflow=_address(url, "postgresql+psycopg", MLFLOW_DATABASE),
        lock=_address(url, "postgresql", MLFLOW_DATABASE),
        server=_address(url, "postgresql", ""),
        prefect_variables=variables,
    )


def database_of(home: Home, settings: StackSettings | None, environ: Mapping[str, str]) -> Database:
    """The kind that has this home's data; where there is none yet, the one that the environment asks for.

    Settings that do not name it are of a stack from before it was remembered, or there was no stack: then
    MLflow's file tells.
    """
    if settings is not None and settings.database is not None:
        return settings.database
    return "sqlite" if (home.mlflow / "mlflow.db").exists() else _asked_for(environ)


def refuse_other_database(home: Home, wanted: Database | None, environ: Mapping[str, str]) -> None:
    """Raises: UserError when the environment asks for another kind than `wanted`: on that one the stack
    would come up healthy and empty, and what its registry does not name is collected.

    None refuses nothing: it is of a stack from before its database was remembered.
    """
    if wanted is None or _asked_for(environ) == wanted:
        return
    file = environment_file(home)
    if wanted == "postgresql":
        raise UserError(
            f"The database of the stack of {home.root} is PostgreSQL, and {POSTGRES} is not set. On SQLite "
            "it would start with nothing: no run, no version, no champion, no promotion log. Nothing was "
            f"started. Write {POSTGRES}=postgresql://user:password@host:5432 into {file}, or set it here. "
            "To begin anew on SQLite on purpose: loraline up --database sqlite."
        )
    raise UserError(
        f"The database of the stack of {home.root} is SQLite, and {POSTGRES} is set, here or in {file}. "
        "Records are not moved, so it would start with nothing: no run, no version, no champion, no "
        f"promotion log. Nothing was started. Take {POSTGRES} away. To begin anew on PostgreSQL on purpose: "
        "loraline up --database postgresql."
    )


def server_place(url: str) -> str:
    """Host and port of a PostgreSQL address, and nothing else of it."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 5432}" if parts.hostname else ""


def _asked_for(environ: Mapping[str, str]) -> Database:
    return "postgresql" if environ.get(POSTGRES, "").strip() else "sqlite"


def database_address(server: str, name: str) -> str:
    """The address of one database of the server, as libpq reads it."""
    return _address(server, "postgresql", name)


def write_ahead(path: Path) -> None:
    """Let SQLite's readers and its writer not wait for each other; the file remembers it.

    Prefect's server does so itself, MLflow's does not.
    """
    with closing(sqlite3.connect(path, timeout=60)) as connection:
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise UserError(
            f"SQLite cannot keep a write-ahead log beside {path} (it stays in mode {mode!r}), as on a "
            f"network file system. Put the state folder on a local disk (--home), or set {POSTGRES}."
        )


def _refuse_unfit(url: str) -> None:
    """No more of the address than host and port is shown: what looks harmless may be half of a password."""
    way_out = "Set it to postgresql://user:password@host:5432, or take it away to use SQLite."
    if is_ambiguous(url):
        raise UserError(f"{POSTGRES} cannot be read as one address. {WHAT_TO_ENCODE} {way_out}")
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname:
        raise UserError(f"{POSTGRES} is no address of a PostgreSQL server. {way_out}")
    if not _has_one_port(parts):
        raise UserError(f"{POSTGRES} names no single host and port. {way_out}")
    if parts.path not in ("", "/"):
        raise UserError(
            f"{POSTGRES}, at {server_place(url)}, names a database. Leave {parts.path!r} away: the stack "
            f"keeps two, {PREFECT_DATABASE} and {MLFLOW_DATABASE}."
        )


def _has_one_port(parts: SplitResult) -> bool:
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        # Several hosts, or a number that is none of a port.
        return False


def _address(url: str, scheme: str, name: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((scheme, parts.netloc, f"/{name}", encoded(parameters(parts.query)), ""))
