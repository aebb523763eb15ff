"""JSON objects, one a line, with the exact line of everything that is wrong."""

import codecs
import json
from collections.abc import Callable, Iterator
from typing import IO, Any

import orjson

from tasks.dataset.reading import exact_json
from tasks.dataset.reading.counts import TableCounts
from tasks.dataset.reading.data_file import DataFile
from tasks.dataset.reading.problem import RowProblem, kind_of

MAX_LINE_BYTES = 64 << 20
"""A longer line is a bad row and is not held in memory: a file without line breaks must not be."""
_PIECE_BYTES = 1 << 20

Refuse = Callable[[int, str, Any], None]
"""Takes a bad row's line, the reason and what the row holds."""


def read_json_lines(
    file: DataFile, counts: TableCounts, refuse: Refuse
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for each line that holds one.

    A byte order mark, CRLF and blank lines are tolerated. Memory does not grow with the file.

    Raises: DataError when the file cannot be read.
    """
    with file.open() as stream:
        for line, raw, size in numbered_lines(stream):
            counts.lines += 1
            if size > MAX_LINE_BYTES:
                refuse(line, too_long(size), raw)
                continue
            if not raw.strip():
                counts.blank_lines += 1
                continue
            try:
                value = exact_json.loads(raw)
            except orjson.JSONDecodeError:
                try:
                    value = _second_look(raw)
                except RowProblem as problem:
                    refuse(line, str(problem), raw)
                    continue
            if type(value) is dict:
                yield line, value
            else:
                refuse(line, f"a JSON object is wanted, this is {kind_of(value)}", raw)


def numbered_lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes, int]]:
    """Yield (line number from 1, the line's bytes, their number).

    Of a line longer than MAX_LINE_BYTES only the first piece is given, and the number tells.
    """
    line = 0
    while raw := stream.readline(_PIECE_BYTES):
        line += 1
        size = len(raw)
        if size == _PIECE_BYTES and not raw.endswith(b"\n"):
            raw, size = _rest(stream, raw)
        if line == 1 and raw.startswith(codecs.BOM_UTF8):
            raw = raw[len(codecs.BOM_UTF8) :]
        yield line, raw, size


def too_long(size: int) -> str:
    """Why a line of `size` bytes is not read."""
    return (
        f"the line has {size:,} bytes, more than the {MAX_LINE_BYTES:,} that a row may have: "
        "are its line breaks missing?"
    )


def _rest(stream: IO[bytes], first: bytes) -> tuple[bytes, int]:
    pieces, size = [first], len(first)
    while piece := stream.readline(_PIECE_BYTES):
        size += len(piece)
        if size <= MAX_LINE_BYTES:
            pieces.append(piece)
        else:
            # Too long already: the rest is passed over without being kept.
            del pieces[1:]
        if piece.endswith(b"\n"):
            break
    return b"".join(pieces), size


def _second_look(raw: bytes) -> Any:
    """What the standard library makes of a line that orjson refuses.

    It says in which column the JSON breaks; and it reads NaN, numbers of any length and halves of
    surrogate pairs, which spoil a row only where its conversation holds them.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowProblem(not_utf8(raw[error.start], error.start)) from error
    try:
        # With its line break a cut object would break "in column 1" of the line after it.
        return json.loads(text.rstrip("\r\n"))
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


def not_utf8(byte: int, position: int) -> str:
    """Why a line in another encoding is not read; `position` counts from 0."""
    return f"not UTF-8 (byte 0x{byte:02x} at position {position}); convert the file to UTF-8"
