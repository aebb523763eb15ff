"""The rows of a query as a JSONL file, and how far it reaches."""

import base64
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from tasks.dataset.reading.newest import write_newest
from tasks.dataset.reading.sql_overlap import Overlap, Start, start_of
from tasks.errors import DataError
from tasks.files import file_sha256

_log = logging.getLogger(__name__)


class Snapshot:
    """`rows.jsonl` and `state.json`, which says up to which byte the rows are complete.

    What a crash leaves behind its last byte is cut off by the next fetch. With a watermark the newest
    rows, as many as `overlap` says, are fetched again with those that are new, and what comes takes their
    place; where nothing comes, they stay. With a `key`, `current.jsonl` holds the newest row of each.
    """

    def __init__(
        self, folder: Path, *, watermark: str | None, overlap: Overlap, key: str | None = None
    ) -> None:
        self.rows = folder / "rows.jsonl"
        self.current = folder / "current.jsonl" if key is not None else self.rows
        """What the source holds."""
        self._key = key
        self._fetched = folder / "fetched.jsonl"
        self._state_path = folder / "state.json"
        self._watermark = watermark
        self._state: dict[str, Any] = {}
        self._start = Start()
        if watermark is not None:
            self._state, self._start = self._read(watermark, overlap)
        self.new_rows = 0
        self.kept_rows = 0
        self.replaced_rows = 0
        """Rows of which the key has a newer row."""
        self.gone_rows = 0
        """By how many fewer rows came than were to be fetched again: they were deleted."""
        self.gone_stay = False
        """Whether the snapshot goes on holding them."""

    @property
    def since(self) -> Any:
        """From which value of the watermark on rows are to be fetched, as the database takes it; None: all."""
        edge = self._edge()
        return None if edge is None else _from_json(edge)

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
        """Put the chunks' rows, those from `since` on, behind the rows that stay.

        Raises: DataError when a row has no watermark.
        """
        with self.rows.open("ab") as stream:
            stream.truncate(self.size)
        held, came, first, last = int(self._state.get("rows", 0)), 0, None, None
        try:
            # Beside the others, which stay whole when the database goes away amid its rows.
            with self._fetched.open("wb") as stream:
                for chunk in chunks:
                    for row in chunk:
                        if self._watermark is not None:
                            last = self._value(row)
                            first = last if first is None else first
                        stream.write(_line(row))
                        came += 1
                stream.flush()
                os.fsync(stream.fileno())
            self.gone_rows = max(0, self._start.rows - came)
            if self._start.rows and (came == 0 or self._is_behind(first)):
                # A table that is emptied, to be loaded again or as a queue is, says nothing of its past.
                self.gone_rows, self.gone_stay = self._start.rows, True
                self._start = Start(self.size, 0, self._state["last"]["value"])
            last = self.since if last is None else last
            rows = held - self._start.rows + came
            # Rows of one value come in any order, which makes no other dataset of them.
            if rows != held or _sum(self._fetched) != _sum(self.rows, self._start.at):
                self._replace(held)
        finally:
            self._fetched.unlink(missing_ok=True)
        self.new_rows = max(0, rows - held)
        self.kept_rows = rows - self.new_rows
        current = {}
        if self._key is not None:
            # From all rows each time: what a crash left of it is never read.
            self.replaced_rows = rows - write_newest(self.rows, self.current, self._key)
            current["current_sha256"] = file_sha256(self.current)
        self._write(
            {
                "size": self.rows.stat().st_size,
                "rows": rows,
                "sha256": file_sha256(self.rows),
                **current,
                "last": None if last is None else _to_json(last),
            }
        )

    def _replace(self, held: int) -> None:
        """Put what was fetched in the place of the rows from the start on."""
        start = self._start
        # First: a crash from here on leaves what stays, behind which the next fetch goes on.
        self._write({"size": start.at, "rows": held - start.rows, "last": self._edge()})
        if start.at == 0:
            self._fetched.replace(self.rows)
            return
        with self.rows.open("r+b") as stream, self._fetched.open("rb") as fetched:
            stream.truncate(start.at)
            stream.seek(start.at)
            shutil.copyfileobj(fetched, stream)
            stream.flush()
            os.fsync(stream.fileno())

    def _is_behind(self, first: Any) -> bool:
        """Whether only rows of the highest value were asked for again, and none of them came."""
        return bool(self.since == _from_json(self._state["last"]) and first != self.since)

    def _edge(self) -> dict[str, Any] | None:
        """The watermark of the first row that is fetched again, with the type that the database gave it."""
        value = self._start.value
        return None if value is None else {**self._state["last"], "value": value}

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

    def _read(self, watermark: str, overlap: Overlap) -> tuple[dict[str, Any], Start]:
        """How far the rows reach, and from where on they are fetched again."""
        if not self._state_path.exists():
            return {}, Start()
        for state in self._told():
            try:
                return state, start_of(
                    self.rows,
                    state["size"],
                    watermark,
                    overlap,
                    lambda value, last=state["last"]: _from_json({**last, "value": value}),  # type: ignore[misc]
                )
            except (OSError, ValueError, KeyError, TypeError, ArithmeticError):
                continue
        _log.warning(
            "%s does not hold the rows that %s tells of (a power failure, or somebody changed it): all "
            "rows of the query are fetched again, without those that the database has deleted since.",
            self.rows,
            self._state_path.name,
        )
        return {}, Start()

    def _told(self) -> Iterator[dict[str, Any]]:
        try:
            state = json.loads(self._state_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(state, dict):
            yield state
            if "tie_start" in state:
                # A fetch that wrote in place was killed: it began behind these.
                yield {**state, "size": state["tie_start"], "rows": state.get("rows_before_tie", 0)}

    def _write(self, state: dict[str, Any]) -> None:
        temporary = self._state_path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
        temporary.replace(self._state_path)
        self._state = state


def _sum(path: Path, start: int = 0) -> int:
    """Of the lines from a byte on: the same whatever their order."""
    with path.open("rb") as stream:
        stream.seek(start)
        return sum(int.from_bytes(hashlib.sha256(line).digest()) for line in stream)


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
