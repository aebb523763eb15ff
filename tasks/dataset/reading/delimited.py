"""Rows of CSV and TSV files, with the line that each begins on."""

import csv
from collections.abc import Iterator
from typing import Any

from tasks.dataset.reading.counts import TableCounts
from tasks.dataset.reading.data_file import DataFile
from tasks.dataset.reading.json_lines import (
    MAX_LINE_BYTES,
    Refuse,
    not_utf8,
    numbered_lines,
    too_long,
)
from tasks.errors import DataError

DELIMITERS = ",;\t|"
"""Spreadsheets of some countries part CSV fields by semicolons."""


def read_delimited(
    file: DataFile, counts: TableCounts, refuse: Refuse
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, columns) for each record; all values are text.

    The first record names the columns. A CSV file's delimiter is the one that its header shows most.

    Raises: DataError when the file cannot be read, its header is unusable, or a quote is never
    closed: where the next record begins is then unknown.
    """
    # The module's own limit is for all of the process and lower than texts are.
    csv.field_size_limit(MAX_LINE_BYTES)
    with file.open() as stream:
        lines = _Lines(numbered_lines(stream))
        header, delimiter = _header(file, lines, "\t" if file.kind == "tsv" else None)
        if not header:
            return
        counts.lines += lines.number
        counts.delimiters.add(delimiter)
        records = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            start = lines.number + 1
            try:
                fields = next(records, None)
            except csv.Error as error:
                counts.lines += lines.number - start + 1
                if lines.number > start:
                    raise DataError(
                        f"{file.shown}:{start}: broken CSV ({error}): a quote that opens here is not "
                        f"closed as far as line {lines.number}. Close it, or double the quotes that "
                        "are text."
                    ) from error
                refuse(start, f"broken CSV ({error})", lines.taken())
                continue
            if fields is None:
                return
            counts.lines += lines.number - start + 1
            problem = lines.problem()
            if problem:
                refuse(*problem, lines.taken())
            elif not fields:
                counts.blank_lines += 1
            elif len(fields) != len(header):
                refuse(start, _wrong_number(fields, header), fields)
            else:
                yield start, dict(zip(header, fields, strict=True))


class _Lines:
    """A file's lines as text for the parser, which does not say where it is and what they held."""

    def __init__(self, lines: Iterator[tuple[int, bytes, int]]) -> None:
        self.number = 0
        self._lines = lines
        self._problem: tuple[int, str] | None = None
        self._last = b""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        self.number, raw, size = next(self._lines)
        self._last = raw
        if size > MAX_LINE_BYTES:
            self._problem = self._problem or (self.number, too_long(size))
            return "\n"
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            wrong = (self.number, not_utf8(raw[error.start], error.start))
            self._problem = self._problem or wrong
            return raw.decode("utf-8", "replace")

    def problem(self) -> tuple[int, str] | None:
        """What was wrong with a line since the last call."""
        found, self._problem = self._problem, None
        return found

    def taken(self) -> bytes:
        """The last line."""
        return self._last


def _header(file: DataFile, lines: _Lines, delimiter: str | None) -> tuple[list[str], str]:
    text = next((line for line in lines if line.strip()), None)
    if text is None:
        return [], ""
    where = f"{file.shown}:{lines.number}"
    if problem := lines.problem():
        raise DataError(f"{where}: {problem[1]}")
    chosen = delimiter or max(DELIMITERS, key=text.count)
    try:
        names = [name.strip() for name in next(csv.reader([text], delimiter=chosen, strict=True))]
    except csv.Error as error:
        raise DataError(f"{where}: the header is broken CSV ({error}).") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        what = (
            f"names {', '.join(map(repr, twice))} twice" if twice else "has a column without a name"
        )
        raise DataError(
            f"{where}: the header {what}; columns here: {', '.join(names)}. "
            "The first line names the columns: give each its own name."
        )
    return names, chosen


def _wrong_number(fields: list[str], header: list[str]) -> str:
    return (
        f"{len(fields)} {'field' if len(fields) == 1 else 'fields'} where the header names "
        f"{len(header)} ({', '.join(header)})"
    )
