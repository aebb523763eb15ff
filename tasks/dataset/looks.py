"""What earlier looks at a recipe's data saw, and where it is kept between them."""

import json
import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    import numpy as np


class Look(BaseModel):
    """What the data was at one time."""

    at: datetime
    """When all rows had been read: a training that began later saw them."""
    digest: str
    base: str | None = None
    """The commit that pinned the base."""


class Memory(BaseModel):
    """What is remembered from look to look."""

    looks: list[Look] = []
    """The oldest first, only those in which something had changed and that still matter."""
    trained_at: datetime | None = None
    """Start of the newest successful run; None: there was none."""
    trained_digest: str = ""
    base: str | None = None
    """The commit that pinned the base when it was trained."""
    asked_at: datetime | None = None

    def before(self, moment: datetime) -> Look:
        """The newest look whose rows a training that began at this moment cannot have missed.

        Where nobody had looked by then, the oldest is as close as one gets.
        """
        return next((it for it in reversed(self.looks) if it.at <= moment), self.looks[0])

    def believe(self, now: datetime) -> None:
        """Take times that are still to come for now: a clock that was ahead would silence all until then."""
        for look in self.looks:
            look.at = min(look.at, now)
        self.trained_at = self.trained_at and min(self.trained_at, now)
        self.asked_at = self.asked_at and min(self.asked_at, now)

    def forget(self, begun: Sequence[datetime]) -> None:
        """Keep only the looks that a run which began at one of these times, or begins just now, may have seen."""
        kept = [*self.looks[-2:], *(self.before(moment) for moment in begun)]
        self.looks = [it for it in self.looks if it in kept]


class Looks:
    """The folder: `state.json`, and `rows-<digest>.npy` for the rows of a look."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = folder / "state.json"

    def read(self) -> Memory:
        """The memory; an empty one where there is none, or a damaged one."""
        try:
            return Memory.model_validate_json(self._state.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return Memory()

    def write(self, memory: Memory) -> None:
        """Keep the memory, and the rows that it speaks of."""
        temporary = self._state.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(memory.model_dump(mode="json"), indent=1), encoding="utf-8")
        # Before any rows go: killed in between, there are some too many and never too few.
        temporary.replace(self._state)
        self._keep_only({memory.trained_digest, *(look.digest for look in memory.looks)})

    def rows(self, digest: str) -> "np.ndarray[Any, Any] | None":
        """The ids of the rows that a look saw, sorted; None when they are not kept."""
        import numpy as np

        try:
            found: np.ndarray[Any, Any] = np.load(self._file(digest), allow_pickle=False)
        except (OSError, ValueError):
            return None
        return found

    def save(self, digest: str, rows: "np.ndarray[Any, Any]") -> None:
        """Keep the ids of a look's rows."""
        import numpy as np

        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".rows.{os.getpid()}.tmp"
        with temporary.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
        temporary.replace(self._file(digest))

    def _file(self, digest: str) -> Path:
        return self.folder / f"rows-{digest[:32]}.npy"

    def _keep_only(self, digests: Iterable[str]) -> None:
        kept = {self._file(digest) for digest in digests}
        for path in self.folder.glob("*.npy"):
            if path not in kept:
                path.unlink(missing_ok=True)
