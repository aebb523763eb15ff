"""Files on a disk: what they hold, that they are really there, and whether somebody holds them."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


def expanded(path: str | Path) -> Path:
    """The path with the home folder for its `~`. That of an unknown user stays as it is: no file is there.

    `Path.expanduser` raises RuntimeError for it, which is nobody's mistake by its looks.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below the folder, by relative name; empty where there is no folder."""
    # Listed first: what a process beside us adds while these are read is not theirs.
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}


def fsync(path: Path) -> None:
    """Have a file's bytes, or a folder's entries, outlive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Synced and renamed into its folder, which is there: it survives a kill, and a loss of power."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        # On a full disk each process that tries would leave one more.
        with suppress(OSError):
            temporary.unlink()
        raise


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of this file; asked by taking it for a moment."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
