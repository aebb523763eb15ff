"""sha256 of large files, hashed once and remembered while they are unchanged."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from tasks.files import file_sha256

_log = logging.getLogger(__name__)


class HashMemory:
    """sha256 of files, remembered by path, size, mtime, ctime and inode.

    A file that is written again is hashed again, even when it keeps its size and a program sets its
    mtime back: that moves its ctime, which no program can set. What is not seen is a change below the
    file system (a disk that returns other bytes), or one with the clock set back to the nanosecond.
    """

    SETTLED_SECONDS = 2.0
    """A file that was changed this recently may change again without a new mtime: not remembered."""

    def __init__(self, path: Path) -> None:
        """`path` is the file that keeps them; a damaged one is as good as none."""
        self._path = path
        self._learnt: dict[str, list[str]] = {}
        self._entries = self._read()

    def sha256(self, path: Path) -> str:
        """The file's sha256, read from memory while the file is as it was.

        Raises: OSError when it cannot be read.
        """
        real = path.resolve()
        status = real.stat()
        state = _state(status)
        known = self._entries.get(str(real))
        if isinstance(known, list) and len(known) == 2 and known[0] == state:
            return str(known[1])
        sha = file_sha256(real)
        if time.time() - status.st_mtime > self.SETTLED_SECONDS:
            self._entries[str(real)] = self._learnt[str(real)] = [state, sha]
        return sha

    def remember(self, path: Path, sha256: str) -> None:
        """Keep the sha256 of a file that was just written, and that nobody else writes to."""
        real = path.resolve()
        self._entries[str(real)] = self._learnt[str(real)] = [_state(real.stat()), sha256]

    def save(self) -> None:
        """Write what was learnt, beside what others learnt meanwhile; a lost race costs one more hashing."""
        if not self._learnt:
            return
        entries = {
            name: entry
            for name, entry in {**self._read(), **self._learnt}.items()
            if Path(name).exists()
        }
        self._learnt = {}
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(entries), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            # Nothing is wrong but the time that the next hashing takes.
            _log.warning("Cannot remember the sha256 of files in %s: %s", self._path, error)

    def _read(self) -> dict[str, Any]:
        try:
            entries = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}


def _state(found: os.stat_result) -> str:
    return "|".join(
        str(part)
        for part in (
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
            found.st_dev,
            found.st_ino,
        )
    )
