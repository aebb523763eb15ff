"""Rows of an SQL query: fetched in chunks into a file, only those since the last run where a column tells."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from tasks.dataset.reading.data_file import DataFile
from tasks.dataset.reading.patience import Silence, heard
from tasks.dataset.reading.places import Placed, local_path
from tasks.dataset.reading.sql_overlap import Overlap, time_of
from tasks.dataset.reading.sql_rows import cancel, chunks_of
from tasks.dataset.reading.sql_snapshot import Snapshot
from tasks.dataset.source_settings import SqlSource
from tasks.errors import DataError, ServerAway, StageFailed
from tasks.files import file_sha256
from tasks.outage import is_outage
from tasks.store import digest

if TYPE_CHECKING:
    from sqlalchemy.exc import SQLAlchemyError

CONNECTING_SECONDS = 300.0
"""How long a server may take to let us in, with all its addresses: some must be woken."""
SILENT_SECONDS = 1800.0
"""How long the next rows may take: a query sorts for minutes before its first one, but not for ever."""
FETCH_SECONDS = 6 * 3600.0
"""How long another run may fetch the same rows: a first fetch takes hours."""
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

    With a watermark only rows from shortly before the last highest value on are asked for. They replace
    the ones that were fetched from there on, for others may have been committed late; where none comes
    any more, those stay, and where fewer come, a warning tells of it. With a key, the
    newest row of each is what the source holds.

    Raises: DataError when the query, the login or the watermark is wrong; ServerAway when the database
    cannot be reached or falls silent; StageFailed when another run does not end fetching the same.
    """
    url = _url(source, recipe_folder)
    asked = [source.query, source.watermark, url.render_as_string(hide_password=True)]
    key = digest([*asked, source.key] if source.key else asked)
    folder = cache / "sql" / key[:32]
    if source.watermark is None and "order by" not in source.query.lower():
        _log.warning(
            "The query of source %s has no ORDER BY: its rows may come in another order at each run, "
            "which makes another dataset of them. Add one, or name a `watermark`.",
            source.name,
        )
    with _alone(source, folder.with_suffix(".lock")):
        # Not before: what was not read for long may be collected just now.
        folder.mkdir(exist_ok=True)
        overlap = Overlap(source.overlap_seconds, source.overlap_rows)
        snapshot = Snapshot(folder, watermark=source.watermark, overlap=overlap, key=source.key)
        _fetch(snapshot, source, url)
        _warn_of_unused(source, snapshot.shown_last)
        _warn_of_gone(source, snapshot)
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


@contextmanager
def _alone(source: SqlSource, path: Path) -> Iterator[None]:
    """Be the only run that fetches these rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=FETCH_SECONDS)
    except Timeout:
        raise StageFailed(
            f"Source {source.name}: another run has been fetching the same rows for "
            f"{FETCH_SECONDS / 3600:g} hours; it holds {path}. Wait for it, or find and end it "
            f"(`fuser {path}` shows its process id), and run again."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _warn_of_unused(source: SqlSource, last: str | None) -> None:
    unused = "overlap_seconds" if time_of(last) is None else "overlap_rows"
    if last is not None and getattr(source, unused) != SqlSource.model_fields[unused].default:
        _log.warning(
            "Source %s: its watermark is %s (%s), so that dataset.sources[].%s says nothing.",
            source.name,
            "no time" if unused == "overlap_seconds" else "a time",
            last,
            unused,
        )


def _warn_of_gone(source: SqlSource, snapshot: Snapshot) -> None:
    used = "overlap_rows" if time_of(snapshot.shown_last) is None else "overlap_seconds"
    # Who sets 0 has said that fetched rows stay.
    if snapshot.gone_rows and (getattr(source, used) or not snapshot.gone_stay):
        _log.warning(
            "Source %s: %d rows of earlier runs were asked for again and are no longer in the database. %s "
            "With dataset.sources[].%s: 0 deleted rows stay (of a queue, of a table that is emptied and "
            "loaded again), unless others of the same, highest watermark are left.",
            source.name,
            snapshot.gone_rows,
            "They stay, for none came." if snapshot.gone_stay else "They are used no more.",
            used,
        )


def _fetch(snapshot: Snapshot, source: SqlSource, url: Any) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    shown, place = _shown(url), source.url_variable or "database"
    is_connected = False
    connections: list[Any] = []
    chunks = heard(
        chunks_of(source, url, snapshot.since, connections),
        chain([CONNECTING_SECONDS], repeat(SILENT_SECONDS)),
        lambda: cancel(connections),
    )
    try:
        with closing(chunks):
            next(chunks)
            is_connected = True
            # Before the rows of earlier runs are touched: a server that is away here leaves them whole.
            first = next(chunks, [])
            snapshot.fetch(chain([first], chunks))
    except ImportError as error:
        raise DataError(
            f"Source {source.name}: no driver for {url.drivername} is installed ({error}). "
            "Install it, for example `pip install psycopg[binary]` for postgresql+psycopg://."
        ) from error
    except Silence:
        raise ServerAway(
            f"Source {source.name}: the database {shown} "
            + (
                f"gave no further rows for {SILENT_SECONDS / 60:g} minutes. Another session may hold a "
                "lock on a table of the query, the network may have lost the connection, or the query "
                f"may need so long for {source.chunk_rows} rows. End that session, make the query "
                "cheaper (an index, a WHERE), or lower dataset.sources[].chunk_rows."
                if is_connected
                else f"let nobody in for {CONNECTING_SECONDS / 60:g} minutes. Check that it runs, that "
                f"no firewall drops what is sent to it, and that {place} names it."
            )
        ) from None
    except SQLAlchemyError as error:
        answer = f"Source {source.name}: the database {shown} answers: {_answer(error, url)}. "
        cause = None if _has_secret(str(error), url) else error
        if is_outage(error):
            raise ServerAway(
                f"{answer}It is down, starting, full or locked, or the network broke: check it, and "
                f"that {place} names it, and run again."
            ) from cause
        raise DataError(f"{answer}Correct dataset.sources[].query, or {place}.") from cause


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
