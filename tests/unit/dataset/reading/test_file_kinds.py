"""The same rows come out of every kind of file, plain and compressed."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import feather, ipc, parquet

from tasks.dataset.reading.detecting import count_rows, detect
from tasks.errors import DataError

ROWS = [
    {
        "prompt": f"Frage {i}: „was“, wo;\nund\twann?",
        "completion": f'Antwort "{i}"',
        "stars": str(i),
    }
    for i in range(2500)
]


def as_jsonl() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def as_csv(delimiter: str, line_end: str = "\n") -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter, lineterminator=line_end)
    writer.writeheader()
    writer.writerows(ROWS)
    return stream.getvalue().encode()


def as_arrow(form: str) -> bytes:
    table = pyarrow.Table.from_pylist(ROWS)
    sink = io.BytesIO()
    if form == "parquet":
        parquet.write_table(table, sink, row_group_size=700)
    elif form == "feather":
        feather.write_feather(table, sink, compression="zstd")
    else:
        new = ipc.new_file if form == "file" else ipc.new_stream
        with new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=600)
    return sink.getvalue()


CONTENTS: dict[str, Any] = {
    "rows.jsonl": as_jsonl,
    "rows.ndjson": as_jsonl,
    "rows.json": lambda: json.dumps(ROWS).encode(),
    "pretty.json": lambda: b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).encode(),
    "lines.json": as_jsonl,
    "rows.csv": lambda: as_csv(","),
    "excel.csv": lambda: b"\xef\xbb\xbf" + as_csv(";", "\r\n"),
    "rows.tsv": lambda: as_csv("\t"),
    "rows.parquet": lambda: as_arrow("parquet"),
    "rows.feather": lambda: as_arrow("feather"),
    "file.arrow": lambda: as_arrow("file"),
    "stream.arrow": lambda: as_arrow("stream"),
    "rows.jsonl.gz": lambda: gzip.compress(as_jsonl()),
    "ROWS.JSONL.GZ": lambda: gzip.compress(as_jsonl()),
    "rows.json.gz": lambda: gzip.compress(json.dumps(ROWS).encode()),
    "rows.jsonl.zst": lambda: zstandard.compress(as_jsonl()),
    "rows.csv.zst": lambda: zstandard.compress(as_csv(",")),
    "rows.tsv.gz": lambda: gzip.compress(as_csv("\t")),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_kind_of_file_gives_the_same_rows(name, reader, write) -> None:
    path = write(name, CONTENTS[name]())

    found = reader(path=name)

    assert found.turns() == [
        [("user", row["prompt"]), ("assistant", row["completion"])] for row in ROWS
    ]
    assert found.rows[0].source.startswith(f"{name}:")
    assert found.source.counts["chat_format"] == "prompt/completion"
    assert found.source.counts["ignored_columns"] == ["stars"]
    assert found.source.counts["rows"] == len(ROWS)
    assert detect(path).columns == ("prompt", "completion", "stars")
    assert count_rows(path) == len(ROWS)


def test_the_recipe_may_say_how_a_file_is_written(reader, write) -> None:
    write("export.txt", as_csv("|"))

    assert len(reader(path="export.txt", format="csv").rows) == len(ROWS)
    with pytest.raises(DataError, match=r"export\.txt: how the file is written is not known"):
        reader(path="export.txt")


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_compressed_file_that_is_cut_off_is_no_shorter_file(kind, reader, write) -> None:
    whole = gzip.compress(as_jsonl()) if kind == "gz" else zstandard.compress(as_jsonl())
    write(f"rows.jsonl.{kind}", whole[:-40])

    with pytest.raises(DataError, match=rf"rows\.jsonl\.{kind}: the compressed file is damaged"):
        reader(path=f"rows.jsonl.{kind}")


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_compressed_files_that_were_joined_are_read_to_the_end(kind, reader, write) -> None:
    """`cat a.gz b.gz` is a common way to join exports."""
    pack = gzip.compress if kind == "gz" else zstandard.compress
    write(f"rows.jsonl.{kind}", pack(as_jsonl()) + pack(as_jsonl()))

    assert len(reader(path=f"rows.jsonl.{kind}").rows) == 2 * len(ROWS)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_a_damaged_table_is_named(name, reader, write) -> None:
    content = as_arrow("parquet" if name.endswith("parquet") else "file")
    write(name, content[: len(content) // 2])

    with pytest.raises(DataError, match=rf"{name}: not a readable (parquet|arrow) file"):
        reader(path=name)


def test_a_table_compressed_once_more_is_refused_with_the_command_that_unpacks_it(
    reader, write
) -> None:
    write("rows.parquet.gz", gzip.compress(as_arrow("parquet")))

    with pytest.raises(DataError, match=r"gunzip rows\.parquet\.gz"):
        reader(path="rows.parquet.gz")


def test_the_columns_of_a_table_hold_messages_as_arrow_fills_them(reader, tmp_path: Path) -> None:
    """In a table every turn has every other turn's keys, as nulls."""
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": "c1"},
        {"role": "assistant", "content": "It is 1."},
    ]
    table = pyarrow.Table.from_pylist([{"messages": messages}])
    parquet.write_table(table, tmp_path / "rows.parquet")

    (row,) = reader(path="rows.parquet").rows

    assert row.messages == (
        {"role": "user", "content": "Add."},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "type": "function",
                    "id": "c1",
                    "function": {"name": "add", "arguments": {"a": 1}},
                }
            ],
        },
        {"role": "tool", "content": "1", "tool_call_id": "c1"},
        {"role": "assistant", "content": "It is 1."},
    )


def test_messages_in_a_csv_are_json(reader, write) -> None:
    messages = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    stream = io.StringIO()
    csv.writer(stream).writerows([["messages"], [messages]])
    write("rows.csv", stream.getvalue())

    assert reader(path="rows.csv").turns() == [[("user", "a"), ("assistant", "b")]]
