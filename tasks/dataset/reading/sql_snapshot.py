"""The rows of a query as a JSONL file that only grows, and how far it reaches."""

import base64
import json
import os
from collections.abc import Callable, Iterable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from tasks.dataset.reading.newest import write_newest
from tasks.errors import DataError
from tasks.files import file_sha256


class Snapshot:
    """`rows.jsonl` and `state.json`, which says up to which byte the rows are complete.

    The state is written after the rows: what a crash leaves behind its last byte is cut off by the
    next fetch. With a watermark it also says at which byte the rows of the highest value begin:
    they are fetched again, for others with the same value may come later. With a `key`,
    `current.jsonl` holds the newest row of each.
    """

    def __init__(self, folder: Path, *, watermark: str | None, key: str | None = None) -> None:
        self.rows = folder / "rows.jsonl"
        self.current = folder / "current.jsonl" if key is not None else self.rows
        """What the source holds."""
        self._key = key
        self._state_path = folder / "state.json"
        self._watermark = watermark
        self._state = self._read()
        self.new_rows = 0
        self.kept_rows = 0
        self.replaced_rows = 0
        """Rows of which the key has a newer row."""

    @property
    def last(self) -> Any:
        """The highest value of the watermark, as the database takes it; None: fetch everything."""
        state = self._state
        return _from_json(state["last"]) if state.get("last") else None

    @property
    def shown_last(self) -> str | None:
        """The highest value in words."""
        last = self._state.get("last")
        return None if last is None else str(last["value"])

    @property
    def digest(self) -> str:
        """sha256 (hex) of what the source holds; empty before the first fetch."""
        return str(self._state.get("current_sha256", self._state.get("sha256", "")))

    @property
    def size(self) -> int:
        """Bytes of the rows."""
        return int(self._state.get("size", 0))

    def fetch(self, chunks: Iterable[list[dict[str, Any]]]) -> None:
        """Put the chunks' rows behind those that stay.

        Raises: DataError when a row has no watermark.
        """
        stays = self._state if self._watermark is not None and self.last is not None else {}
        start = int(stays.get("tie_start", 0))
        self.kept_rows = int(stays.get("rows_before_tie", 0))
        before = self.kept_rows + int(stays.get("tie_rows", 0))
        last, tie_start, tie_rows, rows = self.last, start, 0, self.kept_rows
        with self.rows.open("r+b" if self.rows.exists() else "w+b") as stream:
            stream.seek(start)
            stream.truncate()
            at = start
            for chunk in chunks:
                for row in chunk:
                    line = _line(row)
                    if self._watermark is not None:
                        value = self._value(row)
                        if value != last:
                            last, tie_start, tie_rows = value, at, 0
                        tie_rows += 1
                    stream.write(line)
                    at += len(line)
                    rows += 1
            stream.flush()
            os.fsync(stream.fileno())
        self.new_rows = max(0, rows - before)
        self.kept_rows = rows - self.new_rows
        current = {}
        if self._key is not None:
            # From all rows each time: what a crash left of it is never read.
            self.replaced_rows = rows - write_newest(self.rows, self.current, self._key)
            current["current_sha256"] = file_sha256(self.current)
        self._write(
            {
                "size": at,
                "rows": rows,
                "sha256": file_sha256(self.rows),
                **current,
                "last": None if last is None else _to_json(last),
                "tie_start": tie_start,
                "tie_rows": tie_rows,
                "rows_before_tie": rows - tie_rows,
            }
        )

    def _value(self, row: dict[str, Any]) -> Any:
        assert self._watermark is not None
        if self._watermark not in row:
            raise DataError(
                f"The query gives no column {self._watermark!r}, which dataset.sources[].watermark "
                f"names; columns here: {', '.join(row)}."
            )
        value = row[self._watermark]
        if value is None:
            raise DataError(
                f"The watermark {self._watermark!r} is null in a row, which no later run would find "
                "again. Leave such rows out of the query (WHERE ... IS NOT NULL), or choose another "
                "column."
            )
        return value

    def _read(self) -> dict[str, Any]:
        try:
            state = json.loads(self._state_path.read_text(encoding="utf-8"))
            complete = isinstance(state, dict) and self.rows.stat().st_size >= state["size"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return state if complete else {}

    def _write(self, state: dict[str, Any]) -> None:
        temporary = self._state_path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
        temporary.replace(self._state_path)
        self._state = state


def _line(row: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(row, default=_spelled, option=orjson.OPT_NON_STR_KEYS) + b"\n"
    except (TypeError, ValueError):
        # Numbers beyond 64 bits and halves of surrogate pairs: the standard library writes them.
        return json.dumps(row, default=_spelled).encode() + b"\n"


def _spelled(value: object) -> Any:
    """A database's value as JSON: text, and whole decimals as the whole numbers that they are."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else str(value)
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, datetime | date):
        return value.isoformat()
    return str(value)


_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "Decimal": Decimal,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
}


def _to_json(value: Any) -> dict[str, Any]:
    """A watermark with its type: a database compares a time with a time only."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal | date):
        raise DataError(
            f"The watermark is a {type(value).__name__}, which has no order to rely on. Choose a "
            "column of numbers, times or texts."
        )
    if isinstance(value, int | float | str):
        return {"type": "plain", "value": value}
    if isinstance(value, datetime):
        return {"type": "datetime", "value": value.isoformat()}
    return {"type": type(value).__name__, "value": str(value)}


def _from_json(stored: dict[str, Any]) -> Any:
    read = _FROM_TEXT.get(str(stored["type"]))
    return read(stored["value"]) if read else stored["value"]
