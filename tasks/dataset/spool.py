"""Rows on their way: their text in a file, and a few numbers of each in memory.

Two million rows may be gigabytes of text. What decides about a row (is it a copy, which side is it
on) are hashes and lengths: `BYTES_PER_ROW` bytes of them are kept, and the text is read again.
"""

import hashlib
import json
import math
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import orjson

from tasks.dataset.rows import Row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_COLUMNS = {
    "id": "Q",
    "prompt": "Q",
    "label": "Q",
    "group": "Q",
    "fraction": "d",
    "time": "d",
    "source": "H",
    "turns": "H",
    "prompt_characters": "I",
    "answer_characters": "I",
}
BYTES_PER_ROW = sum(array(code).itemsize for code in _COLUMNS.values())


class Spool:
    """Append rows, then ask for columns of numbers or read the rows again, in order."""

    def __init__(self, path: Path, salt: str) -> None:
        """The text goes to `path`; `salt` is the split's."""
        self._path = path
        self._salt = salt
        self._stream: IO[bytes] | None = path.open("wb")
        self._columns: dict[str, array[Any]] = {
            name: array(code) for name, code in _COLUMNS.items()
        }

    def __len__(self) -> int:
        return len(self._columns["id"])

    def add(self, row: Row, source: int) -> None:
        """Keep a row of the source with this number."""
        assert self._stream is not None, "add() after the first reading"
        self._stream.write(as_line(row) + b"\n")
        label = (row.label, row.answer) if row.label is not None else None
        prompt = row.prompt
        values = {
            "id": int(row.id, 16),
            # 0 stands for no prompt, and for no label.
            "prompt": number(prompt) if prompt is not None else 0,
            "label": number(json.dumps(label)) if label else 0,
            "group": number(row.group),
            "fraction": fraction(self._salt, row.group),
            "time": moment(row.time),
            "source": source,
            "turns": min(len(row.messages), 65535),
            "prompt_characters": sum(len(str(m["content"])) for m in row.messages[:-1]),
            "answer_characters": len(row.answer),
        }
        for name, value in values.items():
            self._columns[name].append(value)

    def column(self, name: str) -> "npt.NDArray[Any]":
        """One number of each row: `id`, `prompt`, `label`, `group` (hashes), `fraction` (where the
        split puts the group, 0-1), `time` (see `moment`), `source`, `turns`, `prompt_characters`, `answer_characters`.
        """
        import numpy as np

        values = self._columns[name]
        kinds = {"Q": np.uint64, "d": np.float64, "H": np.uint16, "I": np.uint32}
        return np.frombuffer(values, dtype=kinds[values.typecode])

    def name(self, position: int) -> str:
        """The row's id, 16 hexadecimal digits."""
        return f"{self._columns['id'][position]:016x}"

    def lines(self) -> Iterator[bytes]:
        """Every row's line without its line break, in order."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        with self._path.open("rb") as stream:
            for line in stream:
                yield line[:-1]

    def row(self, position: int) -> Row:
        """One row; reads the text as far as there."""
        return from_line(next(islice(self.lines(), position, None)))

    def rows(self, wanted: "npt.NDArray[np.bool_]") -> Iterator[tuple[int, Row]]:
        """(position, row) of the wanted rows, in order."""
        for position, line in enumerate(self.lines()):
            if wanted[position]:
                yield position, from_line(line)


def fraction(salt: str, key: str) -> float:
    """A number in [0, 1) that depends on salt and key only, evenly spread over keys."""
    first_bytes = hashlib.sha256(f"{salt}\0{key}".encode()).digest()[:8]
    # 53 bits: all that a float holds, so that the largest value stays below 1.
    return (int.from_bytes(first_bytes) >> 11) / 2**53


def moment(text: str | None) -> float:
    """Seconds since 1970 of an ISO 8601 date or time, UTC where it names no zone; NaN for anything else."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return math.nan
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def number(text: str) -> int:
    """64 bits of the text's sha256. Two of 2 million rows share theirs with a chance of 1 in 9 million."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def as_line(row: Row) -> bytes:
    """A row as `train.jsonl` and `test.jsonl` hold it; what it has not is left out."""
    line: dict[str, Any] = {
        "id": row.id,
        "group": row.group,
        "messages": row.messages,
        "source": row.source,
        "label": row.label,
    }
    for name in ("tools", "rejected", "time", "slice", "text"):
        if value := getattr(row, name):
            line[name] = value
    if row.desirable is not None:
        line["desirable"] = row.desirable
    return orjson.dumps(line)


def from_line(line: bytes) -> Row:
    """The row of a line that `as_line` wrote."""
    value = orjson.loads(line)
    return Row(
        messages=tuple(value["messages"]),
        group=value["group"],
        source=value["source"],
        label=value["label"],
        tools=tuple(value.get("tools", ())),
        rejected=tuple(value.get("rejected", ())),
        desirable=value.get("desirable"),
        time=value.get("time"),
        slice=value.get("slice"),
        text=value.get("text"),
    )
