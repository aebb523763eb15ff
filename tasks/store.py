"""The content-addressed store of stage outputs: a manifest, written last, makes an output complete."""

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from tasks.artifacts import Stage
from tasks.files import file_sha256, fsync
from tasks.progress import announce

if TYPE_CHECKING:
    from tasks.hash_memory import HashMemory
    from tasks.home import Home
    from tasks.remote_store import RemoteStore

MANIFEST = "manifest.json"
_log = logging.getLogger(__name__)
REMEMBERED_FROM_BYTES = 16_000_000
"""Smaller files are hashed each time: it costs milliseconds. Larger ones when they have been written again."""


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON-able value; equal values give equal digests whatever their key order."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(stage: Stage, output_version: int, settings: Any, inputs: dict[str, str]) -> str:
    """What decides a stage's output: its settings, its inputs' fingerprints and its code's version."""
    return digest(
        {"stage": stage, "version": output_version, "settings": settings, "inputs": inputs}
    )


@dataclass(frozen=True)
class Stored:
    """A complete output."""

    path: Path
    reused: bool


class Store:
    """Stage outputs at `<root>/<stage>/<fingerprint>/` on a local file system.

    With `remote`, what is missing here is fetched from there, and what is complete here is copied there.
    """

    def __init__(self, root: Path, remote: "RemoteStore | None" = None) -> None:
        self.root = root
        self.remote = remote

    @classmethod
    def of(cls, home: "Home") -> "Store":
        """That of a state folder, with the remote one that the environment names.

        Raises: UserError for a remote store that nothing here reads.
        """
        # It reads the same manifests.
        from tasks.remote_store import remote_store

        return cls(home.store, remote_store())

    def path(self, stage: Stage, key: str) -> Path:
        """Where the output lives, complete or not."""
        return self.root / stage / key

    def find(self, stage: Stage, key: str) -> Path | None:
        """The output's folder if it is complete and every byte is as published, else None.

        Large files that nobody has written to since they were hashed are not read again. What only the
        remote store has is fetched.
        """
        return self._intact(stage, key) or self._fetched(stage, key)

    def _intact(self, stage: Stage, key: str) -> Path | None:
        folder = self.path(stage, key)
        memory = self._memory()
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            files: dict[str, str] = manifest["files"]
            if _files_below(folder) != sorted(files):
                return None
            intact = all(_hash(folder / name, memory) == sha for name, sha in files.items())
            memory.save()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return folder if intact else None

    def publish(
        self, stage: Stage, key: str, build: Callable[[Path], None], *, force: bool = False
    ) -> Stored:
        """Return the complete output, calling `build(folder)` only when there is none.

        `build` fills an empty temporary folder. A failure or a kill at any moment leaves either the
        complete output or none. Two processes that want the same output build it once.
        """
        folder = self.path(stage, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _turn(FileLock(folder.parent / f".{key}.lock"), stage):
            if not force and (found := self.find(stage, key)) is not None:
                self._share(found, stage, key)
                # Collecting (tasks.retention) spares what was used just now.
                os.utime(found / MANIFEST)
                return Stored(found, reused=True)
            draft = folder.parent / f".{key}.{uuid.uuid4().hex[:8]}.draft"
            draft.mkdir()
            try:
                build(draft)
                self._commit(draft, folder, stage, key)
                self._share(folder, stage, key, replace=True)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            for torn in folder.parent.glob(f".{key}.*.draft"):
                shutil.rmtree(torn, ignore_errors=True)
            return Stored(folder, reused=False)

    def _fetched(self, stage: Stage, key: str) -> Path | None:
        if self.remote is None:
            return None
        from tasks.remote_store import Unavailable

        try:
            if not self.remote.pull(f"{stage}/{key}", self.path(stage, key), MANIFEST):
                return None
        except Unavailable as error:
            _log.warning("%s. What the stage %s needs is made again here", error, stage)
            return None
        return self._intact(stage, key)

    def _share(self, folder: Path, stage: Stage, key: str, *, replace: bool = False) -> None:
        """Copy an output to the remote store; where that fails it is complete all the same, and its next
        reuse tries again. `replace`: what lies there under its name is torn, or older."""
        if self.remote is None:
            return
        from tasks.remote_store import Unavailable

        place = f"{stage}/{key}"
        try:
            there = self.remote.has(place, MANIFEST)
            if there and replace:
                self.remote.remove(place, MANIFEST)
            if replace or not there:
                self.remote.push(folder, place, MANIFEST)
        except Unavailable as error:
            _log.warning(
                "%s. Other workers do not see this output; the next run tries again", error
            )

    def _commit(self, draft: Path, folder: Path, stage: Stage, key: str) -> None:
        files = {name: file_sha256(draft / name) for name in _files_below(draft)}
        if not files:
            raise AssertionError(f"stage {stage} built an empty output")
        for name in files:
            fsync(draft / name)
        if folder.exists():
            # Not complete, or rebuilt by force. Its manifest goes first: a half-removed folder must
            # never look complete.
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
        draft.rename(folder)
        fsync(folder.parent)
        manifest = {"stage": stage, "fingerprint": key, "files": files}
        temporary = folder / f".{MANIFEST}.tmp"
        temporary.write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
        fsync(temporary)
        # Written last: its existence means the output is complete.
        temporary.rename(folder / MANIFEST)
        fsync(folder)
        memory = self._memory()
        for name, sha in files.items():
            if _is_large(folder / name):
                memory.remember(folder / name, sha)
        memory.save()

    def _memory(self) -> "HashMemory":
        # It needs our hashing.
        from tasks.hash_memory import HashMemory

        return HashMemory(self.root.parent / "cache" / "sha256.json")


@contextmanager
def _turn(lock: FileLock, stage: Stage) -> Iterator[None]:
    """Hold the lock; whoever must wait for another run that builds the same output is told."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        announce("waiting", stage=stage, message="another run builds the same output")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _hash(path: Path, memory: "HashMemory") -> str:
    return memory.sha256(path) if _is_large(path) else file_sha256(path)


def _is_large(path: Path) -> bool:
    return path.stat().st_size >= REMEMBERED_FROM_BYTES


def _files_below(folder: Path) -> list[str]:
    ours = {MANIFEST, f".{MANIFEST}.tmp"}
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in names if name not in ours)
