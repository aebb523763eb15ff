"""Recognises what is no text by any suffix, and text of which no line can be read."""

import codecs

from tasks.dataset.reading.data_file import DataFile
from tasks.errors import DataError

_LOOKED_AT_BYTES = 1 << 16
_NO_TEXT = (
    (b"\x1f\x8b", ("compressed by gzip", "End its name with .gz (rows.jsonl.gz), or unpack it.")),
    (
        b"\x28\xb5\x2f\xfd",
        ("compressed by zstd", "End its name with .zst (rows.jsonl.zst), or unpack it."),
    ),
    (b"PAR1", ("a Parquet file", "End its name with .parquet, or write `format: parquet`.")),
    (b"ARROW1", ("an Arrow file", "End its name with .arrow, or write `format: arrow`.")),
    (b"PK\x03\x04", ("a zip archive or a spreadsheet", "Unpack it, or export it as CSV.")),
    (b"SQLite format 3\x00", ("an SQLite database", "Write a source of `type: sql`.")),
)
"""How files begin, what they are, and the way out."""
_MARKS = (
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def refuse_unreadable_text(file: DataFile) -> None:
    """Say once what is the matter with a file of text, instead of once for each of its lines.

    Raises: DataError.
    """
    if file.kind in ("parquet", "arrow"):
        return
    with file.open() as stream:
        begin = stream.read(_LOOKED_AT_BYTES)
    if what := next((what for mark, what in _NO_TEXT if begin.startswith(mark)), None):
        raise DataError(f"{file.shown} is {what[0]}, and is read as {file.described}. {what[1]}")
    encoding = _wide(begin)
    if encoding is not None:
        raise DataError(
            f"{file.shown} is {encoding} text, and UTF-8 is wanted. Convert it "
            f"(`iconv -f {encoding} -t UTF-8`), or export it as UTF-8."
        )
    if file.kind != "json" and b"\r" in begin.strip() and b"\n" not in begin:
        raise DataError(
            f"{file.shown}: its lines end with a carriage return alone, so that all of the file is one "
            "line. Convert it (`tr '\\r' '\\n'`), or export it with the line ends of Unix or Windows."
        )


def _wide(begin: bytes) -> str | None:
    """UTF-16 or UTF-32, by its byte order mark or by the zeros that it puts beside Latin letters."""
    for mark, name in _MARKS:
        if begin.startswith(mark):
            return name
    sample = begin[:1000]
    zeros = max(sample[start::2].count(0) for start in (0, 1))
    return "UTF-16" if len(sample) > 2 and zeros > 0.4 * len(sample) / 2 else None
