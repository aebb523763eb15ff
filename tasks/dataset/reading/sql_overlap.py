"""From where on a query's rows are fetched again: between the newest of them others are committed late.

A row bears the id, or the time, that its transaction took, and is seen when that is committed. By then
rows of higher values may have been read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from tasks.dataset.reading import exact_json


@dataclass(frozen=True)
class Overlap:
    """How far back from the last row: by `seconds` where the watermark is a time, by `rows` where not."""

    seconds: float
    rows: int

    def reaches(self, last: Any, value: Any, rows: int) -> bool:
        """Whether the row with this value, the `rows`th from the end, is as far back as that."""
        newest = time_of(last)
        if newest is None:
            return rows >= self.rows
        time = time_of(value)
        return time is not None and (newest - time).total_seconds() >= self.seconds


@dataclass(frozen=True)
class Start:
    """The first row that is fetched again."""

    at: int = 0
    """Its byte."""
    rows: int = 0
    """It and all behind it."""
    value: Any = None
    """Its watermark, as JSON: rows from this value on are asked for. None: all."""


def start_of(
    file: Path, size: int, column: str, overlap: Overlap, typed: Callable[[Any], Any]
) -> Start:
    """Go back from the byte `size` of a JSONL file whose rows are in the order of `column`.

    Rows of one value stay together: which of them the database gives first is not said. `typed` makes
    the database's value of one in JSON: a numeric 1.5 is its 1.50.

    Raises: OSError, ValueError, KeyError, TypeError or ArithmeticError when the file holds no such
    rows up to `size`.
    """
    if size == 0:
        return Start()
    with file.open("rb") as stream, mmap(stream.fileno(), size, access=ACCESS_READ) as content:
        if content[-1:] != b"\n":
            raise ValueError(f"{file}: no row ends at byte {size}")
        end, rows, last, edge = size, 0, None, None
        while end > 0:
            begin = content.rfind(b"\n", 0, end - 1) + 1
            value = exact_json.loads(content[begin:end])[column]
            # As text too: NaN is not itself.
            if edge is not None and value != edge and typed(value) != typed(edge):
                return Start(end, rows, edge)
            rows += 1
            last = value if last is None else last
            if edge is None and overlap.reaches(last, value, rows):
                edge = value
            end = begin
    return Start(rows=rows)


def time_of(value: Any) -> datetime | None:
    """A time that is written as ISO 8601, as SQLite keeps them too; None: the value is no time."""
    if not isinstance(value, str) or value[4:5] != "-":
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
