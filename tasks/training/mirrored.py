"""Copies of checkpoints in the remote store, from which a worker on another machine goes on."""

import logging
import os
import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tasks.start_notes import CHECKPOINTS
from tasks.training import checkpoints

if TYPE_CHECKING:
    from tasks.remote_store import RemoteStore

STAGED = ".mirror"
_log = logging.getLogger(__name__)


class Mirror:
    """While the block runs, each complete checkpoint of `folder` is copied to `remote`.

    A thread does it: the training does not wait. What it copies it has by name at once (hard links), so
    that a trainer that saves faster than the store takes cannot remove it meanwhile. Of several that
    became complete during a copy the newest is next. Leaving the block waits for the last one, also after
    an interruption: that is when another machine is likely to go on. What cannot be copied is told and
    ends no training.
    """

    def __init__(self, remote: "RemoteStore | None", training: str, folder: Path) -> None:
        self._remote = remote
        self._place = f"{CHECKPOINTS}/{training}"
        self._folder = folder
        self._staged = folder / STAGED
        self._copied: str | None = None
        self._due: Path | None = None
        """The newest staged checkpoint that nobody copies yet."""
        self._ending = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="checkpoint-mirror", daemon=True)

    def __enter__(self) -> Self:
        if self._remote is not None:
            # Of a run that was killed.
            shutil.rmtree(self._staged, ignore_errors=True)
            self._fetch()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._remote is not None:
            with self._changed:
                self._ending = True
                self._changed.notify()
            self._thread.join()
            shutil.rmtree(self._staged, ignore_errors=True)

    def hear(self, event: dict[str, Any]) -> None:
        """Of the worker's events, `saved` says that a checkpoint is complete."""
        if self._remote is None or event["event"] != "saved":
            return
        name = f"{checkpoints.PREFIX}{int(event['step'])}"
        if name == self._copied:
            return
        try:
            staged = self._stage(name)
        except OSError as error:
            _log.warning("%s was not copied: %s", name, error)
            return
        with self._changed:
            overtaken, self._due = self._due, staged
            self._changed.notify()
        if overtaken is not None and overtaken != staged:
            shutil.rmtree(overtaken, ignore_errors=True)

    def forget(self) -> None:
        """Remove the copies, once the training's output is published."""
        if self._remote is None:
            return
        from tasks.remote_store import Unavailable

        try:
            for name in self._remote.folders(self._place):
                self._remote.remove(f"{self._place}/{name}", checkpoints.MANIFEST)
        except Unavailable as error:
            _log.warning("%s. Copies of checkpoints stay there", error)

    def _stage(self, name: str) -> Path:
        """The checkpoint's files under a second name each. Raises: OSError, for it is gone or torn."""
        staged = self._staged / name
        shutil.rmtree(staged, ignore_errors=True)
        try:
            shutil.copytree(self._folder / name, staged, copy_function=_link)
            if not (staged / checkpoints.MANIFEST).is_file():
                raise FileNotFoundError(f"{name} is not complete")
        except OSError:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        return staged

    def _fetch(self) -> None:
        """Bring the newest copy here, where there is none as new."""
        assert self._remote is not None
        from tasks.remote_store import Unavailable

        here = checkpoints.newest_complete(self._folder)
        own = -1 if here is None else checkpoints.step_of(here)
        try:
            for name in reversed(self._numbered()):
                if (step := checkpoints.step_of(Path(name))) < own:
                    return
                if step == own:
                    if self._remote.has(f"{self._place}/{name}", checkpoints.MANIFEST):
                        self._copied = name
                    return
                if self._pulled(name):
                    _log.info("Going on from %s, which another worker wrote", name)
                    self._copied = name
                    return
        except Unavailable as error:
            _log.warning("%s. A checkpoint that lies there only is not gone on from", error)

    def _pulled(self, name: str) -> bool:
        """Whether the copy was whole; a torn one is passed by for the one before it."""
        assert self._remote is not None
        from tasks.remote_store import Unavailable

        try:
            return self._remote.pull(
                f"{self._place}/{name}", self._folder / name, checkpoints.MANIFEST
            )
        except Unavailable as error:
            _log.warning("%s. The checkpoint before it is tried", error)
            return False

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._due is not None or self._ending)
                staged, self._due = self._due, None
            if staged is None:
                return
            try:
                self._copy(staged)
            except Exception as error:
                _log.warning("%s was not copied: %s", staged.name, error)
            finally:
                shutil.rmtree(staged, ignore_errors=True)

    def _copy(self, staged: Path) -> None:
        assert self._remote is not None
        place = f"{self._place}/{staged.name}"
        try:
            self._remote.push(staged, place, checkpoints.MANIFEST)
        except Exception:
            self._remove(place)
            raise
        self._copied = staged.name
        # After the new one is whole: a machine that dies in between leaves one to go on from. All
        # others, for a run that was killed leaves parts behind.
        for name in self._numbered():
            if name != staged.name:
                self._remove(f"{self._place}/{name}")

    def _remove(self, place: str) -> None:
        assert self._remote is not None
        from tasks.remote_store import Unavailable

        try:
            self._remote.remove(place, checkpoints.MANIFEST)
        except Unavailable as error:
            _log.warning("%s. It stays there until the next copy", error)

    def _numbered(self) -> list[str]:
        """Names of the checkpoints there, whole or not, the oldest first."""
        assert self._remote is not None
        names = self._remote.folders(self._place)
        found = [name for name in names if name.rpartition("-")[2].isdigit()]
        return sorted(found, key=lambda name: checkpoints.step_of(Path(name)))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        # Some file systems have no links.
        shutil.copyfile(source, target)
