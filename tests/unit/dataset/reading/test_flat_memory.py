"""Reading holds a piece of a file, however large the file is."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pytest
from pyarrow import ipc, parquet

QUESTION = "Why does the train to the coast leave at half past seven on working days? " * 3
ANSWER = "Because the connection at the junction waits for it, and the tide does not. " * 3


def rows(count: int) -> Iterator[dict[str, str]]:
    for i in range(count):
        yield {"prompt": f"{i}: {QUESTION}", "completion": f"{ANSWER} ({i})"}


def write_lines(path: Path, count: int) -> None:
    with path.open("w") as stream:
        for row in rows(count):
            stream.write(json.dumps(row) + "\n")


def write_packed(path: Path, count: int) -> None:
    with gzip.open(path, "wt", 1) as stream:
        for row in rows(count):
            stream.write(json.dumps(row) + "\n")


def write_array(path: Path, count: int) -> None:
    with path.open("w") as stream:
        for i, row in enumerate(rows(count)):
            stream.write(("[" if i == 0 else ",\n") + json.dumps(row))
        stream.write("]")


def write_csv(path: Path, count: int) -> None:
    with path.open("w") as stream:
        stream.write("prompt,completion\n")
        for row in rows(count):
            stream.write('"{prompt}","{completion}"\n'.format(**row))


def write_table(path: Path, count: int) -> None:
    table = pyarrow.Table.from_pylist(list(rows(50_000)))
    if path.suffix == ".parquet":
        with parquet.ParquetWriter(path, table.schema, compression="none") as writer:
            for _ in range(count // 50_000):
                writer.write_table(table, row_group_size=10_000)
    else:
        with ipc.new_file(path, table.schema) as writer:
            for _ in range(count // 50_000):
                writer.write_table(table, max_chunksize=10_000)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "jsonl": write_lines,
    "jsonl.gz": write_packed,
    "json": write_array,
    "csv": write_csv,
    "parquet": write_table,
    "arrow": write_table,
}

READ = """
from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.opening import open_source
from tasks.dataset.source_settings import FilesSource
source = open_source(FilesSource(type="files", path={path!r}), Path(), cache=Path({path!r}).parent / "cache" / "sources")
bad = BadRows()
rows = source.rows(bad)
for _ in range(30_000):
    next(rows)
start()
print(30_000 + sum(1 for _ in rows))
"""


@pytest.mark.parametrize("kind", WRITERS)
def test_the_rest_of_a_large_file_needs_no_more_memory_than_its_beginning(
    kind: str, tmp_path: Path, resident_growth
) -> None:
    path = tmp_path / f"rows.{kind}"
    count = 200_000
    WRITERS[kind](path, count)
    size = path.stat().st_size
    assert size > 90e6 or kind == "jsonl.gz"

    grown, told = resident_growth(READ.format(path=str(path)))

    assert told == str(count)
    assert grown < 25


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_gigabyte_of_two_million_rows_is_read_in_flat_memory(
    tmp_path: Path, resident_growth
) -> None:
    path = tmp_path / "rows.jsonl"
    write_lines(path, 2_000_000)
    assert path.stat().st_size > 0.95e9

    grown, told = resident_growth(READ.format(path=str(path)))

    assert told == "2000000"
    assert grown < 25
