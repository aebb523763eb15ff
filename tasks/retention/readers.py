"""What a run that makes no version reads meanwhile, written down for as long as its process lives."""

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from tasks.files import is_locked
from tasks.home import Home

_PREFIX = "reading-"
_SETTLED_SECONDS = 60.0
"""A lock's file is there a moment before the lock is held."""


class Reader:
    """One such run; a kernel file lock, which its death frees, says that it lives."""

    def __init__(self, note: Path) -> None:
        self._note = note
        self.outputs: set[tuple[str, str]] = set()
        """(stage, fingerprint)."""
        self.adapters: set[str] = set()
        """sha256 of adapters whose downloaded copies are read."""

    def reads(self, stage: str, fingerprint: str) -> None:
        """Keep a stage's output until the block ends."""
        self.outputs.add((stage, fingerprint))
        self._write()

    def reads_adapter(self, sha256: str) -> None:
        """Keep the downloaded copy of an adapter until the block ends."""
        self.adapters.add(sha256)
        self._write()

    def _write(self) -> None:
        said = {"outputs": sorted(self.outputs), "adapters": sorted(self.adapters)}
        temporary = self._note.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(said), encoding="utf-8")
        temporary.replace(self._note)


@contextmanager
def reading(home: Home) -> Iterator[Reader]:
    """Have collecting spare what the block says that it reads. No run of the adapter: it counts nowhere."""
    home.locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home.locks / f"{_PREFIX}{uuid.uuid4().hex[:12]}.lock")
    note = Path(lock.lock_file).with_suffix(".json")
    with lock:
        try:
            yield Reader(note)
        finally:
            note.unlink(missing_ok=True)
            Path(lock.lock_file).unlink(missing_ok=True)


def living_readers(home: Home) -> Iterator[Reader]:
    """Those whose process lives; what dead ones left is removed."""
    for path in sorted(home.locks.glob(f"{_PREFIX}*.lock")):
        note = path.with_suffix(".json")
        if _is_dead(path):
            note.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            continue
        reader = Reader(note)
        try:
            said = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # It has read nothing yet, or has just ended.
            continue
        reader.outputs = {(stage, key) for stage, key in said["outputs"]}
        reader.adapters = set(said["adapters"])
        yield reader


def _is_dead(path: Path) -> bool:
    try:
        if time.time() - path.stat().st_mtime < _SETTLED_SECONDS:
            return False
    except OSError:
        return False
    return not is_locked(path)
