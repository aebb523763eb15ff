"""Copies of checkpoints in the remote store, from which a worker on another machine goes on."""

import logging
import queue
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tasks.training import checkpoints

if TYPE_CHECKING:
    from tasks.remote_store import RemoteStore

PLACE = "checkpoints"
_log = logging.getLogger(__name__)


class Mirror:
    """While the block runs, each complete checkpoint of `folder` is copied to `remote`.

    A thread does it: the training does not wait. Of several that became complete meanwhile the newest is
    copied. Leaving the block waits for the last one, also after an interruption: that is when
    another machine is likely to go on. What cannot be copied is told and ends no training.
    """

    def __init__(self, remote: "RemoteStore | None", training: str, folder: Path) -> None:
        self._remote = remote
        self._place = f"{PLACE}/{training}"
        self._folder = folder
        self._copied: str | None = None
        self._due: queue.Queue[int | None] = queue.Queue()
        """Steps of complete checkpoints; None ends the thread."""
        self._thread = threading.Thread(target=self._run, name="checkpoint-mirror", daemon=True)

    def __enter__(self) -> Self:
        if self._remote is not None:
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
            self._due.put(None)
            self._thread.join()

    def hear(self, event: dict[str, Any]) -> None:
        """Of the worker's events, `saved` says that a checkpoint is complete."""
        if self._remote is not None and event["event"] == "saved":
            self._due.put(int(event["step"]))

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

    def _fetch(self) -> None:
        """Bring the newest copy here, where there is none as new."""
        assert self._remote is not None
        from tasks.remote_store import Unavailable

        here = checkpoints.newest_complete(self._folder)
        try:
            for name in reversed(self._numbered(self._remote.folders(self._place))):
                if here is not None and checkpoints.step_of(Path(name)) <= checkpoints.step_of(
                    here
                ):
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
        while (step := self._due.get()) is not None:
            while not self._due.empty() and (later := self._due.queue[0]) is not None:
                step = later
                self._due.get()
            try:
                # By its number: the trainer may be writing the next one in the same folder.
                self._copy(f"{checkpoints.PREFIX}{step}")
            except Exception as error:
                # Also: the trainer has removed it meanwhile, for a newer one.
                _log.warning("%s%d was not copied: %s", checkpoints.PREFIX, step, error)

    def _copy(self, name: str) -> None:
        assert self._remote is not None
        if name == self._copied:
            return
        self._remote.push(self._folder / name, f"{self._place}/{name}", checkpoints.MANIFEST)
        older, self._copied = self._copied, name
        # After the new one is whole: a machine that dies in between leaves one to go on from.
        if older is not None:
            self._remote.remove(f"{self._place}/{older}", checkpoints.MANIFEST)

    @staticmethod
    def _numbered(names: list[str]) -> list[str]:
        found = [name for name in names if name.rpartition("-")[2].isdigit()]
        return sorted(found, key=lambda name: checkpoints.step_of(Path(name)))
