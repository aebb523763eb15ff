"""Whatever is broken in a file is reported with its exact line, and nothing else is lost."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tasks.dataset.reading import json_lines
from tasks.dataset.reading.bad_rows import BadRows
from tasks.errors import DataError

GOOD = {"prompt": "What is 2 + 2?", "completion": "4"}
LINE = json.dumps(GOOD).encode() + b"\n"
LATIN = '{"prompt": "é", "completion": "b"}\n'.encode("latin-1")


def chat(*turns: tuple[str, Any]) -> bytes:
    messages = [{"role": role, "content": content} for role, content in turns]
    return json.dumps({"messages": messages}).encode() + b"\n"


CHAT = chat(("user", "a"), ("assistant", "b"))

BROKEN = {
    "broken JSON": (LINE, b'{"prompt": "a", "completion": }\n', "broken JSON at column 31"),
    "not an object": (LINE, b"[]\n", "a JSON object is wanted, this is a list"),
    "a number": (LINE, b"7\n", "a JSON object is wanted, this is a number"),
    "wrong encoding": (LINE, LATIN, "not UTF-8 (byte 0xe9 at position 12)"),
    "null": (LINE, b'{"prompt": "a", "completion": null}\n', "completion is null"),
    "empty answer": (LINE, b'{"prompt": "a", "completion": " "}\n', "completion is empty"),
    "mixed types": (LINE, b'{"prompt": 1, "completion": "b"}\n', "prompt must be text"),
    "missing column": (LINE, b'{"prompt": "a"}\n', "no column completion"),
    "two objects": (LINE, LINE[:-1] + LINE, f"broken JSON at column {len(LINE)} (Extra data)"),
    "wrong role order": (CHAT, chat(("user", "a"), ("user", "b")), "messages[1] is the user's"),
    "no answer": (CHAT, chat(("user", "a")), "ends with the user's turn"),
    "null turn": (CHAT, chat(("user", "a"), ("assistant", None)), "messages[1].content is null"),
    "tool without call": (CHAT, chat(("user", "a"), ("tool", "b")), "must follow an assistant"),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_broken_line_is_named_and_its_neighbours_are_read(
    what: str, line_end: bytes, reader, write, tmp_path: Path
) -> None:
    good, broken, reason = BROKEN[what]
    content = b"\xef\xbb\xbf" + good * 3 + b"\n" + good + broken + good
    path = write("rows.jsonl", content.replace(b"\n", line_end))
    bad = BadRows(1, tmp_path / "quarantine.jsonl")

    found = reader(path="rows.jsonl", bad=bad)

    assert [row.source for row in found.rows] == [f"rows.jsonl:{n}" for n in (1, 2, 3, 5, 7)]
    (entry,) = [json.loads(x) for x in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert entry["where"] == "rows.jsonl:6"
    assert reason in entry["reason"]
    with pytest.raises(DataError) as caught:
        reader(path="rows.jsonl")
    assert f"  {path}:6: " in str(caught.value)
    assert reason in str(caught.value)


def test_a_last_line_that_is_cut_off_is_named(reader, write) -> None:
    path = write("rows.jsonl", LINE * 4 + LINE[:-8])

    with pytest.raises(DataError) as caught:
        reader(path="rows.jsonl")

    assert f"{path}:5: broken JSON" in str(caught.value)
    assert "is it cut off?" in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_line_of_200_megabytes_is_a_bad_row_that_is_not_held(
    kind: str, tmp_path: Path, resident_growth
) -> None:
    path = tmp_path / f"rows.{kind}"
    first, good = (b"", LINE) if kind == "jsonl" else (b"prompt,completion\n", b"What?,Nothing.\n")
    with path.open("wb") as stream:
        stream.write(first + good)
        for _ in range(200):
            stream.write(b"x" * (1 << 20))
        stream.write(b"\n" + good)
    line = 2 if kind == "jsonl" else 3

    grown, told = resident_growth(
        f"""
import sys
from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.opening import open_source
from tasks.dataset.source_settings import FilesSource
from tasks.errors import DataError
bad = BadRows(1, Path({str(tmp_path)!r}) / "quarantine.jsonl")
source = open_source(FilesSource(type="files", path={str(path)!r}), Path(), cache=Path({str(tmp_path)!r}) / "cache" / "sources")
start()
print([row.source for row in source.rows(bad)])
bad.close()
"""
    )

    assert told == str([f"rows.{kind}:{n}" for n in (line - 1, line + 1)])
    entry = json.loads((tmp_path / "quarantine.jsonl").read_text())
    assert entry["where"] == f"rows.{kind}:{line}"
    assert "the line has 209,715,201 bytes, more than the 67,108,864" in entry["reason"]
    assert len(entry["row"]) <= 100_000
    # The limit, and the copy that joins its pieces.
    assert grown < 160


def test_a_line_at_the_limit_is_read_and_one_byte_more_is_not(
    reader, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "_PIECE_BYTES", 16)
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", len(LINE))
    write("fits.jsonl", LINE * 2)
    write("over.jsonl", LINE + LINE.replace(b"4", b"44"))

    assert len(reader(path="fits.jsonl").rows) == 2
    with pytest.raises(DataError, match=r"over\.jsonl:2: the line has"):
        reader(path="over.jsonl")


CSV = b"prompt,completion\nWhy?,Because.\nHow?,So.\n"


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_a_file_of_wide_characters_is_named_and_not_its_lines(
    reader, write, kind: str, encoding: str, name: str
) -> None:
    """What a spreadsheet calls Unicode text."""
    text = (CSV if kind == "csv" else LINE * 30).decode()
    write(f"rows.{kind}", text.encode(encoding))

    with pytest.raises(DataError, match=rf"rows\.{kind} is {name} text, and UTF-8 is wanted"):
        reader(path=f"rows.{kind}")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_file_whose_lines_end_with_a_carriage_return_alone_is_told_as_that(
    reader, write, kind: str
) -> None:
    text = CSV if kind == "csv" else LINE * 3
    write(f"rows.{kind}", text.replace(b"\n", b"\r"))

    with pytest.raises(DataError, match="end with a carriage return alone"):
        reader(path=f"rows.{kind}")


def test_texts_of_other_scripts_and_one_line_files_are_no_wide_text(reader, write) -> None:
    write(
        "rows.jsonl",
        json.dumps({"prompt": "你好\x00\x00", "completion": "你好" * 50}, ensure_ascii=False),
    )
    write("one.jsonl", LINE.strip() + b"\r")

    assert len(reader(path="rows.jsonl").rows) == len(reader(path="one.jsonl").rows) == 1


# JSON arrays


def array(*items: bytes) -> bytes:
    return b"[\n" + b",\n".join(items) + b"\n]\n"


def test_each_bad_object_of_an_array_is_named_by_its_own_line(reader, write, tmp_path) -> None:
    pretty = json.dumps(GOOD, indent=2).encode()
    null = b'{"prompt": "a",\n "completion": null}'
    latin = b'{"prompt": "a",\n "completion": "\xe9"}'
    write("rows.json", array(pretty, null, b"3", latin, pretty))
    bad = BadRows(3, tmp_path / "quarantine.jsonl")

    found = reader(path="rows.json", bad=bad)

    assert [row.source for row in found.rows] == ["rows.json:2", "rows.json:11"]
    entries = [json.loads(x) for x in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [(e["where"], e["reason"]) for e in entries] == [
        ("rows.json:6", "completion is null"),
        ("rows.json:8", "a JSON object is wanted, this is a number"),
        (
            "rows.json:10",
            "not UTF-8 (byte 0xe9 at position 16); convert the file to UTF-8",
        ),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (array(LINE[:-1], b'{"prompt": }'), r"rows\.json:3: broken JSON at column 12 "),
        (
            array(LINE[:-1])[:-3],
            r"rows\.json:2: broken JSON \(',' is due, this is the file's end\)",
        ),
        (array(LINE[:-1])[:-9], r"rows\.json:2: broken JSON at column \d+ "),
        (array(LINE[:-1]) + b"[]", r"rows\.json:4: broken JSON '\[' after the array's end"),
        (b"[" + LINE + LINE + b"]", r"rows\.json:2: broken JSON \(',' is due, this is '\{'\)"),
    ],
)
def test_an_array_that_breaks_off_is_refused_whatever_is_allowed(
    content: bytes, words: str, reader, write, tmp_path
) -> None:
    """The rest of the file would be lost without a word."""
    write("rows.json", content)

    with pytest.raises(DataError, match=words):
        reader(path="rows.json", bad=BadRows(100, tmp_path / "quarantine.jsonl"))


def test_objects_longer_than_a_piece_of_an_array_are_read_whole(reader, write) -> None:
    rows = [{"prompt": "ä" * n, "completion": "b\n" * n} for n in (1, 3_000_000, 2, 900_000)]
    write("rows.json", json.dumps(rows, indent=1, ensure_ascii=False))

    assert reader(path="rows.json").turns() == [
        [("user", row["prompt"]), ("assistant", row["completion"])] for row in rows
    ]


def test_one_object_over_several_lines_is_no_list_of_rows(reader, write) -> None:
    write("rows.json", "\n" + json.dumps({"data": [GOOD, GOOD]}, indent=1))

    with pytest.raises(DataError, match=r"rows\.json:2: one JSON object over several lines"):
        reader(path="rows.json")


# CSV


def table(*rows: list[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream).writerows([["prompt", "completion"], *rows])
    return stream.getvalue()


def test_a_bad_record_is_named_by_the_line_it_begins_on(reader, write, tmp_path) -> None:
    text = table(["two\nlines", "a"], ["three\n\nlines", ""], ["q", "b"])
    path = write("rows.csv", (text + 'only one\r\n"x"y,z\r\nlast,c\r\n').encode() + b"\xe9,d\r\n")
    bad = BadRows(4, tmp_path / "quarantine.jsonl")

    found = reader(path="rows.csv", bad=bad)

    assert [row.source for row in found.rows] == [f"rows.csv:{n}" for n in (2, 7, 10)]
    entries = [json.loads(x) for x in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [(e["where"], e["reason"].partition(";")[0]) for e in entries] == [
        ("rows.csv:4", "completion is empty"),
        ("rows.csv:8", "1 field where the header names 2 (prompt, completion)"),
        ("rows.csv:9", "broken CSV (',' expected after '\"')"),
        ("rows.csv:11", "not UTF-8 (byte 0xe9 at position 0)"),
    ]
    assert found.source.counts["lines"] == len(path.read_bytes().splitlines())


def test_a_quote_that_is_never_closed_is_named_by_the_line_that_opens_it(reader, write) -> None:
    path = write("rows.csv", table(["a", "b"]) + 'c,"d\n' + "e,f\n" * 10)

    with pytest.raises(DataError) as caught:
        reader(path="rows.csv", bad=BadRows(100))

    assert f"{path}:3: broken CSV" in str(caught.value)
    assert "not closed as far as line 13" in str(caught.value)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("prompt,prompt\n", "names 'prompt' twice"),
        ("prompt,,completion\n", "has a column without a name"),
        ('"prompt\n', "the header is broken CSV"),
        ("a,b\nx,y\n", r"rows\.csv:2: unknown format; columns here: a, b"),
        ("prompt,completion\n", "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_a_table_without_a_usable_header_is_refused(header, words, reader, write) -> None:
    write("rows.csv", header)

    with pytest.raises(DataError, match=words):
        reader(path="rows.csv")


# Parquet


def test_a_bad_row_of_a_table_is_named_by_its_number(reader, tmp_path: Path) -> None:
    rows = [GOOD] * 1500 + [{"prompt": "a", "completion": None}] + [GOOD]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")

    with pytest.raises(DataError, match=r"rows\.parquet:1501: completion is null"):
        reader(path="rows.parquet")


def test_a_text_of_a_table_in_another_encoding_takes_no_other_row_with_it(
    reader, tmp_path: Path
) -> None:
    texts = pyarrow.array([b"a", b"\xe9", b"c"], pyarrow.binary()).view(pyarrow.string())
    answers = pyarrow.array(["x", "y", "z"])
    table = pyarrow.table({"prompt": texts, "completion": answers})
    parquet.write_table(table, tmp_path / "rows.parquet")
    bad = BadRows(1, tmp_path / "quarantine.jsonl")

    found = reader(path="rows.parquet", bad=bad)

    assert [row.source for row in found.rows] == ["rows.parquet:1", "rows.parquet:3"]
    assert "rows.parquet:2" in (tmp_path / "quarantine.jsonl").read_text()


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
@pytest.mark.parametrize(
    ("begin", "words"),
    [
        (gzip.compress(LINE * 30), r"compressed by gzip.* End its name with \.gz"),
        (b"\x28\xb5\x2f\xfd" + bytes(40), r"compressed by zstd.* End its name with \.zst"),
        (b"PAR1" + bytes(40), r"a Parquet file.* End its name with \.parquet"),
        (b"ARROW1" + bytes(40), r"an Arrow file.* End its name with \.arrow"),
        (b"PK\x03\x04" + bytes(40), r"a zip archive or a spreadsheet.* export it as CSV"),
        (b"SQLite format 3\x00" + bytes(40), r"an SQLite database.* `type: sql`"),
    ],
    ids=["gzip", "zstd", "parquet", "arrow", "zip", "sqlite"],
)
def test_bytes_that_are_no_text_are_called_what_they_are(
    reader, write, begin: bytes, words: str, kind: str
) -> None:
    write(f"rows.{kind}", begin)

    with pytest.raises(DataError, match=rf"rows\.{kind} is {words}"):
        reader(path=f"rows.{kind}")
