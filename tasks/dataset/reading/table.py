"""Read the rows of a source's files, whatever they are written in, reporting each bad row's place."""

from collections.abc import Iterator, Sequence
from typing import Any

from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.columnar import read_columnar
from tasks.dataset.reading.counts import TableCounts
from tasks.dataset.reading.data_file import DataFile, state_of
from tasks.dataset.reading.delimited import read_delimited
from tasks.dataset.reading.json_array import read_json
from tasks.dataset.reading.json_lines import Refuse, read_json_lines
from tasks.dataset.reading.mapping import Mapping, UnknownFormat
from tasks.dataset.reading.problem import RowProblem
from tasks.dataset.reading.text_kind import refuse_unreadable_text
from tasks.dataset.rows import Row
from tasks.dataset.source_settings import TableSource
from tasks.errors import DataError

READERS = {
    "jsonl": read_json_lines,
    "json": read_json,
    "csv": read_delimited,
    "tsv": read_delimited,
    "parquet": read_columnar,
    "arrow": read_columnar,
}
"""Each yields (line or row number, columns) and hands what it cannot read to `refuse`."""


def records(
    file: DataFile, counts: TableCounts, refuse: Refuse
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line or row number, columns) of one file.

    Raises: DataError when the file cannot be read.
    """
    refuse_unreadable_text(file)
    yield from READERS[file.kind](file, counts, refuse)


def read_table(
    files: Sequence[DataFile], source: TableSource, bad: BadRows, counts: TableCounts
) -> Iterator[Row]:
    """Yield the conversations of all files, in their order; memory does not grow with them.

    Raises: DataError when a file cannot be read, has changed since it was found or no file holds a
    row, or when the first row's format is unknown.
    """
    mapping = Mapping(source, counts)
    for file in files:
        counts.kinds[file.described] = counts.kinds.get(file.described, 0) + 1
        before = file.state or state_of(file.path)

        def refuse(line: int, reason: str, raw: Any, file: DataFile = file) -> None:
            bad.read += 1
            counts.bad_rows += 1
            bad.add(f"{file.shown}:{line}", reason, raw, name=f"{file.name}:{line}")

        for line, value in records(file, counts, refuse):
            try:
                rows = mapping.rows(value, f"{file.name}:{line}")
            except UnknownFormat as problem:
                raise DataError(f"{file.shown}:{line}: {problem}") from problem
            except RowProblem as problem:
                refuse(line, str(problem), value)
                continue
            bad.read += 1
            counts.rows += len(rows)
            yield from rows
        if state_of(file.path) != before:
            raise DataError(f"{file.shown} changed while it was read. Run again.")
    if not counts.rows and not counts.bad_rows:
        raise DataError(no_rows(files))


def no_rows(files: Sequence[DataFile]) -> str:
    """Why a source without rows is refused."""
    what = (
        f"{files[0].shown} holds no rows"
        if len(files) == 1
        else f"{files[0].shown} and {len(files) - 1} more files: the source holds no rows"
    )
    return f"{what}. Export the data again, or take the file out of dataset.sources."
