"""The sources of a dataset, whatever their kind: hash them, read them all."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.jsonl import JsonlCounts, read_jsonl
from tasks.dataset.reading.python_source import PythonCounts, python_digest, read_python
from tasks.dataset.rows import Row
from tasks.dataset.settings import DatasetSettings
from tasks.dataset.source_settings import JsonlSource, PythonSource
from tasks.dataset.split import limit_rows
from tasks.errors import DataError
from tasks.store import file_sha256


@dataclass
class Read:
    """One source's rows and what is known about them."""

    name: str
    rows: list[Row]
    counts: JsonlCounts | PythonCounts
    max_rows: int | None = None


def source_name(source: JsonlSource | PythonSource) -> str:
    """What people call the source; free of folders, which differ between machines."""
    if isinstance(source, PythonSource) and source.package is not None:
        return source.package
    return Path(source.path or "").name or "folder"


def source_identity(source: JsonlSource | PythonSource) -> dict[str, Any]:
    """The source's settings as far as they decide the rows: where it lies does not."""
    return {**source.model_dump(mode="json", exclude={"path"}), "name": source_name(source)}


def source_digest(source: JsonlSource | PythonSource, recipe_folder: Path) -> str:
    """sha256 (hex) of what a source holds.

    Raises: DataError when it does not exist.
    """
    if isinstance(source, PythonSource):
        return python_digest(source, recipe_folder)
    path = jsonl_path(source, recipe_folder)
    try:
        return file_sha256(path)
    except OSError as error:
        raise DataError(
            f"Cannot read dataset.sources[].path {source.path} ({path}): "
            f"{error.strerror or error}. Correct it (relative paths start at the recipe's folder)."
        ) from error


def jsonl_path(source: JsonlSource, recipe_folder: Path) -> Path:
    """The source's file on this machine, short enough to stand before every bad line."""
    return Path(os.path.normpath(recipe_folder / Path(source.path).expanduser()))


def read_sources(settings: DatasetSettings, recipe_folder: Path) -> list[Read]:
    """Read every source, in the recipe's order.

    Raises: DataError with the bad rows of all sources together.
    """
    bad = BadRows()
    sources: list[Read] = []
    for source in settings.sources:
        name = source_name(source)
        if isinstance(source, PythonSource):
            python = PythonCounts()
            rows = list(read_python(source, recipe_folder, python))
            sources.append(Read(name, rows, python, source.max_rows))
        else:
            jsonl = JsonlCounts()
            path = jsonl_path(source, recipe_folder)
            rows = list(read_jsonl(path, bad, jsonl, group=source.group))
            sources.append(Read(name, rows, jsonl))
    bad.raise_if_any()
    return sources


def within_limits(rows: list[Row], sources: list[Read], dropped: Counter[str]) -> list[Row]:
    """Apply each source's `max_rows` to those of its rows that are left after duplicates."""
    over: set[int] = set()
    for source in sources:
        if source.max_rows is None:
            continue
        own = set(map(id, source.rows))
        mine = [row for row in rows if id(row) in own]
        over |= set(map(id, mine)) - set(map(id, limit_rows(mine, source.max_rows)))
    if over:
        dropped["over dataset.sources[].max_rows"] += len(over)
    return [row for row in rows if id(row) not in over]
