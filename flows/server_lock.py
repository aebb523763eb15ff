"""At most one Prefect server on a home's SQLite file: a kernel lock that the server itself inherits."""

import contextlib
import datetime
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

from tasks.home import Home


@dataclass(frozen=True)
class Holder:
    """Who holds the lock."""

    pid: int
    purpose: str
    """Such as `loraline run recipes/a.yaml`."""
    since: str
    """Local time, to the second."""

    def __str__(self) -> str:
        return f"`{self.purpose}` (process {self.pid}, since {self.since})"


class ServerLock:
    """An flock(2) on `<home>/locks/prefect-server.lock`, whose content names the holder.

    The server's process inherits the descriptor. So the lock lives as long as the server does,
    even when the process that started both is killed.
    """

    def __init__(self, home: Home) -> None:
        self._path: Path = home.locks / "prefect-server.lock"
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """The open file, for `pass_fds`; only while the lock is held."""
        assert self._descriptor is not None, "the lock is not held"
        return self._descriptor

    def acquire(self, purpose: str) -> bool:
        """Take the lock without waiting; False when somebody else has it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        now = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
        text = json.dumps({"pid": os.getpid(), "purpose": purpose, "since": now})
        os.ftruncate(descriptor, 0)
        # Only its name is lost on a full disk, and the lock is the kernel's.
        with contextlib.suppress(OSError):
            os.pwrite(descriptor, text.encode(), 0)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back; the server that inherited it must have ended."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> Holder | None:
        """Who holds the lock, as written there; None when that cannot be read."""
        try:
            return Holder(**json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
