"""sha256 of large files, hashed once and remembered while they are unchanged."""

import json
import os
import time
from pathlib import Path

from tasks.store import file_sha256


class HashMemory:
    """sha256 of large files, remembered by path, size, mtime and inode."""

    SETTLED_SECONDS = 2.0
    """A file that was changed this recently may change again without a new mtime: not remembered."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = False
        self._entries: dict[str, list[str]] = {}
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(entries, dict):
                self._entries = entries
        except (OSError, ValueError):
            pass

    def sha256(self, path: Path) -> str:
        """The file's sha256, read from memory while size, mtime and inode are as they were."""
        real = path.resolve()
        status = real.stat()
        state = f"{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"
        known = self._entries.get(str(real))
        if isinstance(known, list) and len(known) == 2 and known[0] == state:
            return str(known[1])
        sha = file_sha256(real)
        if time.time() - status.st_mtime > self.SETTLED_SECONDS:
            self._entries[str(real)] = [state, sha]
            self._changed = True
        return sha

    def save(self) -> None:
        """Write what was learnt; a lost race costs one more hashing."""
        if not self._changed:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self._entries), encoding="utf-8")
        temporary.replace(self._path)
