"""What a file says about itself by its first row, for the recipe that is made for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.counts import TableCounts
from tasks.dataset.reading.data_file import DataFile, data_file
from tasks.dataset.reading.json_lines import numbered_lines
from tasks.dataset.reading.mapping import Mapping, UnknownFormat
from tasks.dataset.reading.problem import RowProblem
from tasks.dataset.reading.table import no_rows, records
from tasks.dataset.source_settings import FilesSource
from tasks.errors import DataError


@dataclass(frozen=True)
class Detected:
    """What the first readable row of a file says about it."""

    kind: str
    """How the file is written: `jsonl`, `csv.gz`."""
    format: str
    """Name of the chat format, for example `messages`."""
    columns: tuple[str, ...]
    """The row's columns in their order."""
    ignored: tuple[str, ...]
    """Columns that no conversation is made of."""


def detect(path: Path) -> Detected:
    """The format of a file, judged by its first row.

    Raises: DataError when the file cannot be read, is empty or has an unknown format.
    """
    file = data_file(path, str(path), path.name)
    bad, counts = BadRows(), TableCounts()
    mapping = Mapping(FilesSource(type="files", path=str(path)), counts)

    def refuse(line: int, reason: str, raw: Any) -> None:
        bad.add(f"{path}:{line}", reason, raw)

    for line, value in records(file, counts, refuse):
        try:
            mapping.rows(value, f"{path.name}:{line}")
        except UnknownFormat as problem:
            raise DataError(f"{path}:{line}: {problem}") from problem
        except RowProblem:
            # Its columns tell all the same; the run reports what is wrong with the row.
            pass
        return Detected(file.described, counts.chat_format, tuple(value), counts.ignored_columns)
    bad.raise_if_any()
    raise DataError(no_rows([file]))


def count_rows(path: Path) -> int:
    """The file's rows; of a JSONL file the lines that hold something, without parsing them.

    Raises: DataError when the file cannot be read.
    """
    file = data_file(path, str(path), path.name)
    if file.kind == "jsonl":
        return _filled_lines(file)
    return sum(1 for _ in records(file, TableCounts(), lambda *_: None))


def _filled_lines(file: DataFile) -> int:
    with file.open() as stream:
        return sum(1 for _, raw, _ in numbered_lines(stream) if raw.strip())
