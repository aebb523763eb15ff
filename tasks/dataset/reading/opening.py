"""Open the sources of a dataset, whatever their kind: what they hold is hashed, rows come on demand."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.counts import TableCounts
from tasks.dataset.reading.hub import open_hub
from tasks.dataset.reading.places import Placed, digest_of, is_url, local_files, name_of
from tasks.dataset.reading.python_source import PythonCounts, python_digest, read_python
from tasks.dataset.reading.remote import remote_files
from tasks.dataset.reading.sql import open_query
from tasks.dataset.reading.table import read_table
from tasks.dataset.rows import Row
from tasks.dataset.settings import DatasetSettings
from tasks.dataset.source_settings import (
    FilesSource,
    HuggingFaceSource,
    JsonlSource,
    PythonSource,
    Source,
    SqlSource,
    TableSource,
)
from tasks.errors import DataError
from tasks.hash_memory import HashMemory


@dataclass
class Opened:
    """One source: what it holds, and a way to read it."""

    name: str
    """As people call it, free of folders."""
    identity: dict[str, Any]
    """The settings that decide the rows, for the fingerprint; where the source lies does not."""
    digest: str
    """sha256 (hex) of what the source holds."""
    rows: Callable[[BadRows], Iterator[Row]]
    """Streams the conversations; to be called once. Memory does not grow with them.

    Raises DataError at the end when the source is no longer what `digest` stands for.
    """
    counts: dict[str, Any] = field(default_factory=dict)
    """JSON for the dataset's card, beginning with `kind`; complete when `rows` has ended."""
    weight: float | None = None
    """Its share when sources are mixed; None: the sources follow each other."""
    max_rows: int | None = None


def open_sources(settings: DatasetSettings, recipe_folder: Path, *, cache: Path) -> list[Opened]:
    """Open every source in the recipe's order.

    Local files are hashed, unless they are as they were when they were hashed before; remote files
    and the new rows of a query are fetched into `cache`; of a Hub dataset only the commit is asked
    for, its rows are fetched when they are read.

    Raises: DataError when a source does not exist or does not answer.
    """
    return [open_source(source, recipe_folder, cache=cache) for source in settings.sources]


def open_source(source: Source, recipe_folder: Path, *, cache: Path) -> Opened:
    """Open one source; see `open_sources`."""
    if isinstance(source, PythonSource):
        return _open_python(source, recipe_folder)
    if isinstance(source, HuggingFaceSource):
        dataset = open_hub(source, cache)
        commit = {"commit": dataset.commit}
        opened = _table(source, source.id, dataset.digest, dataset.fetched, commit)
        # In place of the branch, which moves.
        opened.identity |= commit
        return opened
    if isinstance(source, SqlSource):
        query = open_query(source, recipe_folder, cache)
        return _table(source, source.name, query.digest, query.fetched, query.facts)
    placed = (
        remote_files(source, cache) if is_url(source.path) else local_files(source, recipe_folder)
    )
    others = {"passed_over": placed.passed_over, "broken_links": placed.broken_links}
    facts = {what: list(names) for what, names in others.items() if names}
    # The memory that the base's weights are in: beside what sources fetched.
    memory = HashMemory(cache.parent / "sha256.json")
    digest = digest_of(placed.files, memory)
    memory.save()
    return _table(source, name_of(source.path), digest, lambda: placed, facts)


def identity_of(source: Source, name: str) -> dict[str, Any]:
    """The source's settings as far as they decide the rows."""
    elsewhere = {"path", "storage_options", "url_variable", "database", "revision"}
    # What they bring is in the digest.
    fetching = {"chunk_rows", "overlap_seconds", "overlap_rows"}
    return {**source.model_dump(mode="json", exclude=elsewhere | fetching), "name": name}


def _table(
    source: TableSource | FilesSource | JsonlSource | HuggingFaceSource | SqlSource,
    name: str,
    digest: str,
    fetched: Callable[[], Placed],
    facts: dict[str, Any],
) -> Opened:
    assert isinstance(source, FilesSource | JsonlSource | HuggingFaceSource | SqlSource)
    found: dict[str, Any] = {"kind": source.type, **facts}

    def rows(bad: BadRows) -> Iterator[Row]:
        counts = TableCounts()
        try:
            yield from read_table(fetched().files, source, bad, counts)
        finally:
            found.update(counts.as_json())

    return Opened(
        name, identity_of(source, name), digest, rows, found, source.weight, source.max_rows
    )


def _open_python(source: PythonSource, recipe_folder: Path) -> Opened:
    found: dict[str, Any] = {"kind": source.type}
    name = source.package or name_of(source.path or "")
    digest = python_digest(source, recipe_folder)

    def rows(bad: BadRows) -> Iterator[Row]:
        counts = PythonCounts()
        try:
            for row in read_python(source, recipe_folder, counts):
                bad.read += 1
                yield row
        finally:
            found.update(
                rows=counts.rows,
                files=counts.files,
                unreadable_files=counts.unreadable_files,
                skipped=dict(sorted(counts.skipped.items())),
            )
        if python_digest(source, recipe_folder) != digest:
            raise DataError(f"The Python files of {name} changed while they were read. Run again.")

    return Opened(
        name,
        identity_of(source, name),
        digest,
        rows,
        found,
        source.weight,
        source.max_rows,
    )
