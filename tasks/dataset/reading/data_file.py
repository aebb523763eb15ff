"""A file of rows: where it lies, how it is written, and its bytes without their compression."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

from tasks.dataset.source_settings import FileKind
from tasks.errors import DataError

Compression = Literal["gz", "zst"]

KINDS: dict[str, FileKind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".zst": "zst", ".zstd": "zst"}
KNOWN_SUFFIXES = ", ".join([*KINDS, *COMPRESSIONS])


@dataclass(frozen=True)
class DataFile:
    """One local file of rows; a remote one is read from its local copy."""

    path: Path
    shown: str
    """What stands before a bad row's line: the path, or the URL."""
    name: str
    """Free of folders of this machine: `chats/january.jsonl`."""
    kind: FileKind
    compression: Compression | None = None
    state: tuple[int, ...] = ()
    """The file's state when it was found, which is before it is hashed; empty: when it is read."""

    @property
    def described(self) -> str:
        """`csv`, `jsonl.gz`."""
        return f"{self.kind}.{self.compression}" if self.compression else self.kind

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The file's bytes, decompressed while they are read.

        Raises: DataError when it cannot be opened, or its compressed bytes are damaged or cut off.
        """
        try:
            with self.path.open("rb") as stored, _decompressed(stored, self.compression) as stream:
                yield stream
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(self._damaged(error)) from error
        except OSError as error:
            # pyarrow reports a damaged stream as an OSError without a number.
            if self.compression is not None and error.errno is None:
                raise DataError(self._damaged(error)) from error
            raise DataError(
                f"Cannot read {self.shown}: {error.strerror or error}. "
                "Correct dataset.sources[].path (relative paths start at the recipe's folder)."
            ) from error

    def _damaged(self, error: Exception) -> str:
        return (
            f"{self.shown}: the compressed file is damaged or cut off ({error}). "
            "Copy or export it again; nothing was prepared."
        )


def recognised(name: str) -> tuple[FileKind | None, Compression | None]:
    """How a file is written, judged by its suffixes; None where they do not tell."""
    suffixes = Path(name.lower()).suffixes
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    rest = suffixes[:-1] if compression else suffixes
    return (KINDS.get(rest[-1]) if rest else None), compression


def bare_name(name: str) -> str:
    """The file's name without the suffixes that say how it is written."""
    while (suffix := Path(name).suffix) and suffix.lower() in {**KINDS, **COMPRESSIONS}:
        name = name.removesuffix(suffix)
    return name


def data_file(path: Path, shown: str, name: str, kind: FileKind | None = None) -> DataFile:
    """The file, with its kind from the recipe or from its suffix.

    Raises: DataError when neither tells, or a table that compresses itself is compressed again.
    """
    by_suffix, compression = recognised(name)
    chosen = kind or by_suffix
    if chosen is None:
        raise DataError(
            f"{shown}: how the file is written is not known from its name. Known suffixes are "
            f"{KNOWN_SUFFIXES}. Give dataset.sources[].format, or rename it."
        )
    if compression and chosen in ("parquet", "arrow"):
        raise DataError(
            f"{shown}: {chosen} files are read in pieces and compress inside. Unpack it "
            f"(`{'gunzip' if compression == 'gz' else 'zstd -d'} {Path(name).name}`)."
        )
    return DataFile(path, shown, name, chosen, compression, state_of(path))


def state_of(path: Path) -> tuple[int, ...]:
    """What changes whenever the file does: a program may set its time back, but not its ctime."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@contextmanager
def _decompressed(stored: IO[bytes], compression: Compression | None) -> Iterator[IO[bytes]]:
    if compression is None:
        yield stored
    elif compression == "gz":
        with gzip.GzipFile(fileobj=stored) as unpacked:
            # Its own readline is a slow one.
            yield io.BufferedReader(cast(io.RawIOBase, unpacked), 1 << 20)
    else:
        import pyarrow

        # And not the zstandard package, whose stream ends without a word where the file is cut off.
        with pyarrow.CompressedInputStream(
            pyarrow.PythonFile(stored, mode="r"), "zstd"
        ) as unpacked:
            yield io.BufferedReader(unpacked, 1 << 20)
