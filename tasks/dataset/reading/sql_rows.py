"""The rows of an SQL query as its database gives them, without the right to write."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tasks.dataset.source_settings import SqlSource
from tasks.dataset.sql_text import bare
from tasks.errors import DataError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, TextClause

CONNECT_SECONDS = 30
"""How long one address of a server may take to let us in."""
_LIBPQ = {
    "connect_timeout": CONNECT_SECONDS,
    # A firewall forgets a connection that is silent while the server sorts, and tells neither side.
    "keepalives_idle": 60,
    "keepalives_interval": 15,
    "keepalives_count": 4,
}
"""What PostgreSQL's client library is told, unless the URL says something else
(https://www.postgresql.org/docs/current/libpq-connect.html)."""


def chunks_of(
    source: SqlSource, url: Any, since: Any, connections: list[Any]
) -> Generator[list[dict[str, Any]], None, None]:
    """First an empty one as soon as there is a connection, which is put into `connections`."""
    engine = _engine(url)
    try:
        with _reading(engine) as connection:
            connections.append(connection.connection.driver_connection)
            yield []
            yield from _rows(source, engine, connection, since)
    finally:
        engine.dispose()


def cancel(connections: list[Any]) -> None:
    """Have the server end the query, which would go on, or wait for its lock, without anybody to read it."""
    for connection in connections:
        # psycopg; psycopg2 and oracledb; sqlite3. Each may be called from another thread.
        for name in ("cancel_safe", "cancel", "interrupt"):
            if (end := getattr(connection, name, None)) is not None:
                # A server that is not there ends it by itself.
                with suppress(Exception):
                    end()
                break


def _engine(url: Any) -> "Engine":
    from sqlalchemy import create_engine

    told: dict[str, int] = {}
    if url.get_backend_name() == "postgresql" and url.get_driver_name().startswith("psycopg"):
        told = {name: value for name, value in _LIBPQ.items() if name not in url.query}
    return create_engine(url, connect_args=told)


@contextmanager
def _reading(engine: "Engine") -> "Iterator[Connection]":
    """A connection that the database lets write nothing, where it knows of such."""
    dialect = engine.dialect.name
    with engine.connect() as connection:
        if dialect == "postgresql":
            connection = connection.execution_options(postgresql_readonly=True)
        elif dialect == "sqlite":
            connection.exec_driver_sql("PRAGMA query_only = ON")
        yield connection


def _rows(
    source: SqlSource, engine: "Engine", connection: "Connection", since: Any
) -> Iterator[list[dict[str, Any]]]:
    # Not through pandas' tables: they make 7.0 of a 7 beside a null, and of a jsonb column
    # the text that Python prints for a list.
    result = connection.execution_options(
        # Otherwise the driver holds the whole result.
        stream_results=True,
        max_row_buffer=source.chunk_rows,
    ).execute(
        _statement(source, engine, since), {} if since is None else {"since_watermark": since}
    )
    names = list(result.keys())
    if len(set(names)) < len(names):
        raise DataError(
            f"Source {source.name}: the query names a column twice ({', '.join(names)}). "
            "Name each by AS."
        )
    for part in result.partitions(source.chunk_rows):
        yield [dict(zip(names, row, strict=True)) for row in part]


def _statement(source: SqlSource, engine: "Engine", since: Any) -> "TextClause":
    from sqlalchemy import text

    query = bare(source.query)
    # A colon of the query (a cast, a time) is no parameter of ours.
    query = query.replace("\\", "\\\\").replace(":", "\\:")
    if source.watermark is None:
        return text(query)
    column = engine.dialect.identifier_preparer.quote(source.watermark)
    where = f" WHERE {column} >= :since_watermark OR {column} IS NULL" if since is not None else ""
    # A comment that ends the query must not take the rest with it.
    return text(f"SELECT * FROM ({query}\n) AS source_rows{where} ORDER BY {column}")
