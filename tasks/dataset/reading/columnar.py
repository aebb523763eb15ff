"""Rows of Parquet and Arrow files, a batch in memory at a time."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.dataset.reading.counts import TableCounts
from tasks.dataset.reading.data_file import DataFile
from tasks.dataset.reading.json_lines import Refuse
from tasks.errors import DataError

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 1024


def read_columnar(
    file: DataFile, counts: TableCounts, refuse: Refuse
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, columns).

    Raises: DataError when the file cannot be read, or is damaged.
    """
    import pyarrow

    number = 0
    try:
        with file.open() as stream:
            batches = _parquet(stream) if file.kind == "parquet" else _arrow(stream)
            for batch in batches:
                for row in _rows(batch):
                    number += 1
                    counts.lines += 1
                    if isinstance(row, UnicodeDecodeError):
                        refuse(number, f"a text is not UTF-8 ({row.reason})", None)
                    else:
                        yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = " ".join(str(error).split())
        raise DataError(
            f"{file.shown}: not a readable {file.kind} file, after {number:,} rows ({what}). "
            "Export or copy it again, or correct dataset.sources[].format."
        ) from error


def _parquet(stream: Any) -> "Iterator[pyarrow.RecordBatch]":
    from pyarrow import parquet

    # Without buffering ahead: a row group may be the whole file.
    with parquet.ParquetFile(stream, pre_buffer=False) as table:
        yield from table.iter_batches(BATCH_ROWS, use_threads=False)


def _arrow(stream: Any) -> "Iterator[pyarrow.RecordBatch]":
    import pyarrow

    # A file ends with an index of its batches, a stream has none; both are called .arrow.
    try:
        whole = pyarrow.ipc.open_file(stream)
    except pyarrow.ArrowInvalid:
        stream.seek(0)
        with pyarrow.ipc.open_stream(stream) as batches:
            for batch in batches:
                yield from _pieces(batch)
        return
    with whole:
        for index in range(whole.num_record_batches):
            yield from _pieces(whole.get_batch(index))


def _pieces(batch: "pyarrow.RecordBatch") -> "Iterator[pyarrow.RecordBatch]":
    for start in range(0, batch.num_rows, BATCH_ROWS):
        yield batch.slice(start, BATCH_ROWS)


def _rows(batch: "pyarrow.RecordBatch") -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        # Arrow itself does not look: one text of another encoding must not take the batch with it.
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield error
