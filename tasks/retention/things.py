"""What collecting removes: one thing at a time, and what the disk gets back for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.store import MANIFEST

Kind = Literal[
    "output", "draft", "checkpoints", "log", "report", "cache", "copy", "record", "lock", "verdicts"
]
LOCK_SECONDS = 7 * 86_400.0
"""A lock's empty file stays for so long: whoever waits for it would otherwise hold one that nobody else sees."""


@dataclass(frozen=True)
class Goes:
    """One thing that nothing needs."""

    kind: Kind
    path: Path
    bytes: int


def found(kind: Kind, path: Path) -> Goes:
    """That thing, with the bytes that the disk gets back."""
    return Goes(kind, path, size(path))


def size(path: Path) -> int:
    """Bytes on disk of a file, or of all files in a folder."""
    files = [it for it in path.rglob("*") if it.is_file()] if path.is_dir() else [path]
    # Blocks, not lengths: what the disk gets back.
    return sum(_blocks(it) for it in files)


def _blocks(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0


def last_used(path: Path) -> float:
    """When an output was made or reused, or a copy of remote data read: what says that it is whole is touched then."""
    manifest = path / MANIFEST
    if manifest.exists():
        return written(manifest)
    return max(newest(path), written(path.with_suffix(".json")))


def newest(folder: Path) -> float:
    """When anything in a folder was last written."""
    return max((written(it) for it in (folder, *folder.rglob("*"))), default=0.0)


def written(path: Path) -> float:
    """When a file was last written, in seconds since 1970; 0 when it is gone."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0
