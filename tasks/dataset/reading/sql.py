"""Rows of an SQL query: fetched in chunks into a file, only those since the last run where a column tells."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from tasks.dataset.reading.data_file import DataFile
from tasks.dataset.reading.places import Placed, local_path
from tasks.dataset.reading.sql_snapshot import Snapshot
from tasks.dataset.source_settings import SqlSource
from tasks.dataset.sql_text import bare
from tasks.errors import DataError
from tasks.files import file_sha256
from tasks.store import digest

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, TextClause
    from sqlalchemy.exc import SQLAlchemyError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Query:
    """What a query gave, as a file on this machine."""

    digest: str
    fetched: Callable[[], Placed]
    facts: dict[str, Any]
    """For the card: rows that were new in this run, rows of earlier runs, the watermark."""


def open_query(source: SqlSource, recipe_folder: Path, cache: Path) -> Query:
    """Run the query and keep its rows in `cache`.

    With a watermark only rows at or above the last highest value are asked for; those at it replace
    the ones that were fetched with that value, for more may have come with the same. With a key, the
    newest row of each is what the source holds.

    Raises: DataError when the database does not answer, or the query or the watermark is wrong.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    url = _url(source, recipe_folder)
    asked = [source.query, source.watermark, url.render_as_string(hide_password=True)]
    key = digest([*asked, source.key] if source.key else asked)
    folder = cache / "sql" / key[:32]
    folder.mkdir(parents=True, exist_ok=True)
    if source.watermark is None and "order by" not in source.query.lower():
        _log.warning(
            "The query of source %s has no ORDER BY: its rows may come in another order at each run, "
            "which makes another dataset of them. Add one, or name a `watermark`.",
            source.name,
        )
    with FileLock(folder.with_suffix(".lock")):
        snapshot = Snapshot(folder, watermark=source.watermark, key=source.key)
        try:
            engine = create_engine(url)
            try:
                with _reading(engine) as connection:
                    snapshot.fetch(_chunks(source, engine, connection, snapshot.last))
            finally:
                engine.dispose()
        except ImportError as error:
            raise DataError(
                f"Source {source.name}: no driver for {url.drivername} is installed ({error}). "
                "Install it, for example `pip install psycopg[binary]` for postgresql+psycopg://."
            ) from error
        except SQLAlchemyError as error:
            raise DataError(
                f"Source {source.name}: the database "
                f"{_shown(url)} answers: {_answer(error, url)}. "
                f"Correct dataset.sources[].query, or {source.url_variable or 'database'}."
            ) from (None if _has_secret(str(error), url) else error)
        content = snapshot.digest
        size = snapshot.size

    def fetched() -> Placed:
        # Another run may have fetched since; its rows are not those that the digest stands for.
        if not snapshot.current.is_file() or file_sha256(snapshot.current) != content:
            raise DataError(
                f"Source {source.name}: another run fetched newer rows meanwhile. Run again."
            )
        return Placed((DataFile(snapshot.current, source.name, source.name, "jsonl"),))

    _log.info(
        "Source %s: %d new rows, %d kept of earlier runs (%d bytes)",
        source.name,
        snapshot.new_rows,
        snapshot.kept_rows,
        size,
    )
    facts: dict[str, Any] = {"new_rows": snapshot.new_rows, "kept_rows": snapshot.kept_rows}
    if source.watermark is not None:
        facts["watermark"] = {"column": source.watermark, "last": snapshot.shown_last}
    if source.key is not None:
        facts["replaced_rows"] = snapshot.replaced_rows
    return Query(content, fetched, facts)


def _url(source: SqlSource, recipe_folder: Path) -> Any:
    from sqlalchemy import URL, make_url
    from sqlalchemy.exc import ArgumentError

    if source.database is not None:
        path = local_path(source.database, recipe_folder)
        if not path.is_file():
            # SQLite would make an empty one.
            raise DataError(
                f"dataset.sources[].database {source.database} ({path}) does not exist. "
                "Correct it (relative paths start at the recipe's folder)."
            )
        return URL.create("sqlite", database=str(path))
    assert source.url_variable is not None
    text = os.environ.get(source.url_variable)
    if not text:
        raise DataError(
            f"The environment variable {source.url_variable} is not set; source {source.name} takes "
            "the database's URL from it, for example postgresql+psycopg://user:password@host/name."
        )
    try:
        return make_url(text)
    except ArgumentError:
        # The text may hold a password: it is not repeated.
        raise DataError(
            f"The environment variable {source.url_variable} holds no SQLAlchemy URL. It looks like "
            "postgresql+psycopg://user:password@host/name."
        ) from None


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


def _chunks(
    source: SqlSource, engine: "Engine", connection: "Connection", last: Any
) -> Iterator[list[dict[str, Any]]]:
    # Not through pandas' tables: they make 7.0 of a 7 beside a null, and of a jsonb column
    # the text that Python prints for a list.
    result = connection.execution_options(
        # Otherwise the driver holds the whole result.
        stream_results=True,
        max_row_buffer=source.chunk_rows,
    ).execute(_statement(source, engine, last), {} if last is None else {"last_watermark": last})
    names = list(result.keys())
    if len(set(names)) < len(names):
        raise DataError(
            f"Source {source.name}: the query names a column twice ({', '.join(names)}). "
            "Name each by AS."
        )
    for part in result.partitions(source.chunk_rows):
        yield [dict(zip(names, row, strict=True)) for row in part]


def _statement(source: SqlSource, engine: "Engine", last: Any) -> "TextClause":
    from sqlalchemy import text

    query = bare(source.query)
    # A colon of the query (a cast, a time) is no parameter of ours.
    query = query.replace("\\", "\\\\").replace(":", "\\:")
    if source.watermark is None:
        return text(query)
    column = engine.dialect.identifier_preparer.quote(source.watermark)
    since = f" WHERE {column} >= :last_watermark OR {column} IS NULL" if last is not None else ""
    # A comment that ends the query must not take the rest with it.
    return text(f"SELECT * FROM ({query}\n) AS source_rows{since} ORDER BY {column}")


def _shown(url: Any) -> str:
    """The address without its user's password, and without a query, where drivers take one as well."""
    return str(url.set(query={}).render_as_string(hide_password=True))


def _answer(error: "SQLAlchemyError", url: Any) -> str:
    # The driver's own words, without the statement and its parameters.
    told = " ".join(str(getattr(error, "orig", None) or error).split())
    for secret in _secrets(url):
        told = told.replace(secret, "***")
    return told[:500]


def _has_secret(text: str, url: Any) -> bool:
    return any(secret in text for secret in _secrets(url))


def _secrets(url: Any) -> list[str]:
    # Not the short values of a query (`mode=ro`), which stand in many words.
    options = [str(it) for it in url.query.values() if len(str(it)) >= 6]
    return [*([str(url.password)] if url.password else []), *options]
