"""The objects of one JSON array, read piece by piece with the line that each begins on."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from tasks.dataset.reading.counts import TableCounts
from tasks.dataset.reading.data_file import DataFile
from tasks.dataset.reading.json_lines import (
    MAX_LINE_BYTES,
    Refuse,
    not_utf8,
    numbered_lines,
    read_json_lines,
)
from tasks.dataset.reading.problem import kind_of
from tasks.errors import DataError

_PIECE_BYTES = 1 << 20
_SPACE = " \t\r\n"
_DECODER = json.JSONDecoder()
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


def read_json(
    file: DataFile, counts: TableCounts, refuse: Refuse
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a `.json` file: an array of objects, or an object a line.

    An array that breaks off ends the reading: where the next object begins is then unknown.

    Raises: DataError for that, or when the file cannot be read.
    """
    line, begin = _first_line(file)
    if begin.startswith(b"["):
        with file.open() as stream:
            yield from _Array(file, stream, counts, refuse).objects()
    elif begin == b"{":
        raise DataError(
            f"{file.shown}:{line}: one JSON object over several lines. A list of objects is wanted, or "
            "one object a line. Where the rows lie below a key of this object, export that list."
        )
    else:
        yield from read_json_lines(file, counts, refuse)


def _first_line(file: DataFile) -> tuple[int, bytes]:
    """The first line that holds something, as far as it tells how the file is written."""
    with file.open() as stream:
        for line, raw, _ in numbered_lines(stream):
            if begin := raw.strip():
                return line, begin[:100]
    return 0, b""


class _Array:
    """A window on the file's text that moves on as objects are taken out."""

    def __init__(
        self, file: DataFile, stream: IO[bytes], counts: TableCounts, refuse: Refuse
    ) -> None:
        self._file, self._stream, self._counts, self._refuse = file, stream, counts, refuse
        # Bytes of other encodings become lone surrogates, so that they spoil their row and no other.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._text = ""
        self._at = 0
        self._line = 1
        self._ended = False

    def objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        self._expect("[")
        if self._next_sign() != "]":
            while True:
                yield from self._one()
                if self._next_sign() == "]":
                    break
                self._expect(",")
                self._next_sign()
        self._advance(1)
        if rest := self._next_sign():
            raise self._broken(self._line, f"{rest!r} after the array's end")
        self._counts.lines += self._line

    def _one(self) -> Iterator[tuple[int, dict[str, Any]]]:
        line = self._line
        value, length = self._decoded()
        text = self._text[self._at : self._at + length]
        self._advance(length)
        if wrong := _ESCAPED_BYTE.search(text):
            # The message counts as it does for a line: bytes from the last line break.
            before = text[: wrong.start()].rpartition("\n")[2]
            position = len(before.encode("utf-8", "surrogateescape"))
            where = line + text.count("\n", 0, wrong.start())
            self._refuse(where, not_utf8(ord(wrong[0]) - 0xDC00, position), text)
        elif isinstance(value, dict):
            yield line, value
        else:
            self._refuse(line, f"a JSON object is wanted, this is {kind_of(value)}", text)

    def _decoded(self) -> tuple[Any, int]:
        """The value at the window's start and its length; the window grows until it holds it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                length = end - self._at
                # A number at the window's end may go on behind it.
                if end < len(self._text) or not self._grow():
                    return value, length
            except json.JSONDecodeError as error:
                line = self._line + self._text.count("\n", self._at, error.pos)
                column = error.pos - self._text.rfind("\n", 0, error.pos)
                if len(self._text) - self._at > MAX_LINE_BYTES or not self._grow():
                    raise self._broken(line, f"at column {column} ({error.msg})") from error
            except (RecursionError, ValueError) as error:
                raise self._broken(self._line, f"({error})") from error

    def _expect(self, sign: str) -> None:
        found = self._next_sign()
        if found != sign:
            what = repr(found) if found else "the file's end"
            raise self._broken(self._line, f"({sign!r} is due, this is {what})")
        self._advance(1)

    def _next_sign(self) -> str:
        """The next character that is no space, without taking it; empty at the file's end."""
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in _SPACE:
                end += 1
            self._advance(end - self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._grow():
                return ""

    def _advance(self, characters: int) -> None:
        self._line += self._text.count("\n", self._at, self._at + characters)
        self._at += characters

    def _grow(self) -> bool:
        """Read on, as much again as is waiting, so that a large object is not parsed over and over."""
        if self._ended:
            return False
        wanted = max(_PIECE_BYTES, len(self._text) - self._at)
        raw = self._stream.read(wanted)
        self._ended = not raw
        self._text = self._text[self._at :] + self._decoder.decode(raw, final=self._ended)
        self._at = 0
        return not self._ended

    def _broken(self, line: int, what: str) -> DataError:
        return DataError(
            f"{self._file.shown}:{line}: broken JSON {what}. The rest of the array cannot be read: "
            "correct it there, or export one object a line (.jsonl), where one bad row spoils no other."
        )
