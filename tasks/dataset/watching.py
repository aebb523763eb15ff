"""Whether a dataset has so much new that a training is due: today's rows beside those of the last training."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.opening import Opened, open_sources
from tasks.dataset.settings import DatasetSettings
from tasks.store import digest

if TYPE_CHECKING:
    import numpy as np

ASK_AGAIN = timedelta(days=1)
"""A run that was asked for and came to nothing is asked for again after so long, or when more is new."""


class Memory(BaseModel):
    """What the last looks saw: `state.json`; rows are in `trained.npy` and `seen.npy` beside it."""

    trained_at: datetime | None = None
    """Start of the newest successful run; None: there was none."""
    trained_digest: str = ""
    seen_digest: str = ""
    asked_at: datetime | None = None
    asked_digest: str = ""
    base: str | None = None
    """The commit that pinned the base when it was trained."""


@dataclass(frozen=True)
class Seen:
    """What one look saw."""

    cause: str | None
    """Why a training is due, in words that its run records; None: it is not."""
    told: str
    """What there is, for the log."""
    new_rows: int
    digest: str


class Watch:
    """The looks at one recipe's data."""

    def __init__(self, folder: Path, cache: Path) -> None:
        """`folder` keeps the memory; `cache` is the one that trainings read sources through."""
        self._folder, self._cache = folder, cache
        self._state = folder / "state.json"

    def look(
        self,
        settings: DatasetSettings,
        recipe_folder: Path,
        *,
        after_new_rows: int | None,
        after_days: float | None,
        trained_at: datetime | None,
        base: str | None = None,
        now: datetime | None = None,
    ) -> Seen:
        """Open the sources, count what is new, and say whether it is enough.

        Rows are read only when a source has changed since the last look; what is fetched for that, a
        training finds in the same cache. `trained_at`: start of the newest successful run, of whatever
        cause. `base`: the commit that pins the base now; another one than before is a cause, too.

        Raises: DataError when a source does not answer.
        """
        import numpy as np

        now = now or datetime.now(UTC)
        memory = self._read()
        sources = open_sources(settings, recipe_folder, cache=self._cache)
        today = digest([[it.name, it.digest] for it in sources])
        rows = self._rows("seen")
        if rows is None or today != memory.seen_digest:
            before, rows = (rows, memory.seen_digest), _ids(sources)
        else:
            before = (rows, today)
        self._take_training(memory, trained_at, before, (rows, today), base)
        trained = self._rows("trained")
        new = len(np.setdiff1d(rows, trained)) if trained is not None else len(rows)
        cause = _cause(memory, today, new, len(rows), after_new_rows, after_days, base, now)
        self._save("seen", rows)
        memory.seen_digest = today
        self._write(memory)
        return Seen(cause, f"{len(rows):,} rows, {new:,} of them new", new, today)

    def asked(self, seen: Seen, now: datetime | None = None) -> None:
        """Remember that a training was asked for: the same rows ask for no second one."""
        memory = self._read()
        memory.asked_at, memory.asked_digest = now or datetime.now(UTC), seen.digest
        self._write(memory)

    def _take_training(
        self,
        memory: Memory,
        trained_at: datetime | None,
        before: "tuple[np.ndarray[Any, Any] | None, str]",
        today: "tuple[np.ndarray[Any, Any], str]",
        base: str | None,
    ) -> None:
        """After a training, what counts as old are the rows that the last look before it had seen."""
        if trained_at is None or (memory.trained_at and trained_at <= memory.trained_at):
            return
        rows, seen = before
        if rows is None:
            # The first look comes after a training: it saw the data as it is, as far as one can tell.
            rows, seen = today
        self._save("trained", rows)
        memory.trained_at, memory.trained_digest, memory.base = trained_at, seen, base
        memory.asked_at, memory.asked_digest = None, ""

    def _read(self) -> Memory:
        try:
            return Memory.model_validate_json(self._state.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return Memory()

    def _write(self, memory: Memory) -> None:
        temporary = self._state.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(memory.model_dump(mode="json"), indent=1), encoding="utf-8")
        temporary.replace(self._state)

    def _rows(self, name: str) -> "np.ndarray[Any, Any] | None":
        import numpy as np

        try:
            found: np.ndarray[Any, Any] = np.load(self._folder / f"{name}.npy", allow_pickle=False)
        except (OSError, ValueError):
            return None
        return found

    def _save(self, name: str, rows: "np.ndarray[Any, Any]") -> None:
        import numpy as np

        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{name}.{os.getpid()}.tmp"
        with temporary.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
        temporary.replace(self._folder / f"{name}.npy")


def _cause(
    memory: Memory,
    today: str,
    new: int,
    rows: int,
    after_new_rows: int | None,
    after_days: float | None,
    base: str | None,
    now: datetime,
) -> str | None:
    moved = memory.trained_at is not None and base is not None and base != memory.base
    if (
        memory.asked_at is not None
        and memory.asked_digest == today
        and now - memory.asked_at < ASK_AGAIN
    ):
        return None
    if moved:
        return f"the base's lock moved to commit {str(base)[:12]}"
    if today == memory.trained_digest:
        return None
    if after_new_rows is not None and new >= after_new_rows:
        return f"{new:,} of {rows:,} rows are new (asked for: {after_new_rows:,})"
    if after_days is None:
        return None
    if memory.trained_at is None:
        return f"{rows:,} rows, and nothing was trained yet"
    days = (now - memory.trained_at) / timedelta(days=1)
    if days >= after_days:
        return f"the data changed ({new:,} new rows), and the last training is {days:.1f} days old"
    return None


def _ids(sources: list[Opened]) -> "np.ndarray[Any, Any]":
    """The rows as sorted 64-bit numbers, eight bytes each: what a row teaches decides its number.

    Bad rows are not counted; the training names them.
    """
    import numpy as np

    def numbers() -> Iterator[int]:
        for source in sources:
            for row in source.rows(BadRows()):
                yield int(row.id, 16)

    return np.unique(np.fromiter(numbers(), dtype=np.uint64))
