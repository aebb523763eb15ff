"""Read chat rows from a JSONL file, with the exact line of everything that is wrong with it."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.conversations import FORMATS, Format, RowProblem, format_of
from tasks.dataset.rows import Row, prompt_group
from tasks.errors import DataError

WAYS_OUT = "Known formats are " + "; ".join(f"{f.name} ({f.wants})" for f in FORMATS) + "."


@dataclass(frozen=True)
class Detected:
    """What the first readable row of a file says about it."""

    format: str
    """Name of the chat format, for example `messages`."""
    columns: tuple[str, ...]
    """The row's columns in their order."""
    ignored: tuple[str, ...]
    """Columns that no conversation is made of."""


@dataclass
class JsonlCounts:
    """What a file held, filled while it is read."""

    format: str = ""
    lines: int = 0
    blank_lines: int = 0
    rows: int = 0
    """Conversations; one line of `instruction/instances` may hold several."""
    ignored_columns: tuple[str, ...] = ()


def detect(path: Path) -> Detected:
    """The format of a JSONL file, judged by its first row.

    Raises: DataError when the file cannot be read, is empty or has an unknown format.
    """
    bad = BadRows()
    for line, value in _objects(path, bad, JsonlCounts()):
        form = _format(path, line, value)
        return Detected(form.name, tuple(value), _ignored(form, value, None))
    bad.raise_if_any()
    raise DataError(_no_rows(path))


def read_jsonl(
    path: Path, bad: BadRows, counts: JsonlCounts, *, group: str | None = None
) -> Iterator[Row]:
    """Yield the file's conversations, adding what is wrong to `bad`.

    The file is read line by line: memory does not grow with it, and every line number is exact.
    A byte order mark, CRLF and blank lines are tolerated.

    Raises: DataError when the file cannot be opened, holds no row, or its format is unknown.
    """
    form: Format | None = None
    first = 0
    for line, value in _objects(path, bad, counts):
        if form is None:
            form, first = _format(path, line, value), line
            counts.format = form.name
            counts.ignored_columns = _ignored(form, value, group)
        where = f"{path}:{line}"
        missing = [column for column in form.columns if column not in value]
        if missing:
            bad.add(where, _other_format(form, first, missing, value))
            continue
        try:
            conversations = form.read(value)
            key = _group_value(value, group) if group else None
        except RowProblem as problem:
            bad.add(where, str(problem))
            continue
        for messages in conversations:
            counts.rows += 1
            yield Row(
                messages=tuple(messages),
                group=key or (form.group(value) if form.group else prompt_group(messages)),
                source=f"{path.name}:{line}",
            )
    if form is None and not bad.count:
        raise DataError(_no_rows(path))


def _objects(path: Path, bad: BadRows, counts: JsonlCounts) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, JSON object) for each line that holds one."""
    try:
        stream = path.open("rb")
    except OSError as error:
        raise DataError(
            f"Cannot read {path}: {error.strerror or error}. "
            "Correct dataset.sources[].path (relative paths start at the recipe's folder)."
        ) from error
    with stream:
        for line, raw in enumerate(stream, start=1):
            counts.lines = line
            if line == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if not raw.strip():
                counts.blank_lines += 1
                continue
            try:
                yield line, _object(raw)
            except RowProblem as problem:
                bad.add(f"{path}:{line}", str(problem))


def _object(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowProblem(
            f"not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start}); "
            "convert the file to UTF-8"
        ) from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        # Only the last line can lack its line break.
        cut = (
            ""
            if raw.endswith(b"\n")
            else "; the file ends here without a line break: is it cut off?"
        )
        raise RowProblem(f"broken JSON at column {error.colno} ({error.msg}){cut}") from error
    except (ValueError, RecursionError) as error:
        raise RowProblem(f"JSON that cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise RowProblem(f"a JSON object is wanted, this is {_kind(value)}")
    return value


def _format(path: Path, line: int, value: dict[str, Any]) -> Format:
    try:
        return format_of(value)
    except RowProblem as problem:
        raise DataError(f"{path}:{line}: {problem} {WAYS_OUT}") from problem


def _other_format(form: Format, first: int, missing: list[str], value: dict[str, Any]) -> str:
    seen = ", ".join(value) or "none"
    reason = (
        f"no column {' and no '.join(missing)}: the file is {form.name} since line {first}; "
        f"columns here: {seen}"
    )
    try:
        other = format_of(value)
    except RowProblem:
        return reason
    return f"{reason}. This row is {other.name}: one file holds one format, split it"


def _group_value(value: dict[str, Any], column: str) -> str:
    key = value.get(column)
    if isinstance(key, bool) or not isinstance(key, str | int) or key == "":
        raise RowProblem(
            f"the group column {column!r} must hold text or a whole number, this is {_kind(key)}"
            if column in value
            else f"no column {column!r}, which dataset.sources[].group names; "
            f"columns here: {', '.join(value)}"
        )
    return f"{column}-{key}"


def _ignored(form: Format, value: dict[str, Any], group: str | None) -> tuple[str, ...]:
    used = {*form.columns, *form.optional, group}
    return tuple(column for column in value if column not in used)


def _no_rows(path: Path) -> str:
    return f"{path} holds no rows. Export the data again, or take the file out of dataset.sources."


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
