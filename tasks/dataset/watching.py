"""Whether a dataset has so much new that a training is due: today's rows beside those of the last training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from tasks.dataset.looks import Look, Looks, Memory
from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.opening import Opened, open_sources
from tasks.dataset.settings import DatasetSettings
from tasks.store import digest

if TYPE_CHECKING:
    import numpy as np

ASK_AGAIN = timedelta(days=1)
"""A run that was asked for and came to nothing is asked for again after so long, and not before."""


@dataclass(frozen=True)
class Seen:
    """What one look saw."""

    cause: str | None
    """Why a training is to be asked for, in words that its run records; None: none is."""
    told: str
    """What there is, for the log."""
    new_rows: int
    asked_at: datetime | None
    """When one was asked for that has not succeeded; None too where that was so long ago that it may be again."""


class Watch:
    """The looks at one recipe's data."""

    def __init__(self, folder: Path, cache: Path) -> None:
        """`folder` keeps the memory; `cache` is the one that trainings read sources through."""
        self._looks, self._cache = Looks(folder), cache

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Be the only look until it has asked: two at once would both ask. False: another one is at work."""
        folder = self._looks.folder
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / "looking.lock", timeout=0):
                yield True
        except Timeout:
            yield False

    def look(
        self,
        settings: DatasetSettings,
        recipe_folder: Path,
        *,
        after_new_rows: int | None,
        after_days: float | None,
        trained_at: datetime | None,
        begun: Sequence[datetime] | None = (),
        base: str | None = None,
        now: datetime | None = None,
    ) -> Seen:
        """Open the sources, count what is new, and say whether it is enough.

        Rows are read only when a source has changed since the last look; what is fetched for that, a
        training finds in the same cache. `trained_at`: start of the newest successful run, of whatever
        cause; what is new since is new for the next. `begun`: starts of the runs that may still
        succeed, None where nobody knows: what was there before one is what it saw. `base`: the commit
        that pins the base now; another one than at the training is a cause, too.

        Raises: DataError when a source does not answer.
        """
        import numpy as np

        memory = self._looks.read()
        sources = open_sources(settings, recipe_folder, cache=self._cache)
        today = digest([[it.name, it.digest] for it in sources])
        rows = self._looks.rows(today)
        if rows is None:
            rows = _ids(sources)
            self._looks.save(today, rows)
        # Only now: a training that began while they were read may have missed the last of them.
        now = now or datetime.now(UTC)
        memory.believe(now)
        last = memory.looks[-1] if memory.looks else None
        if last is None or (last.digest, last.base) != (today, base):
            memory.looks.append(Look(at=now, digest=today, base=base))
        self._take_training(memory, trained_at)
        trained = self._looks.rows(memory.trained_digest)
        new = len(np.setdiff1d(rows, trained)) if trained is not None else len(rows)
        if (asked := memory.asked_at) is not None and now - asked >= ASK_AGAIN:
            asked = None
        cause = None
        if asked is None:
            cause = _cause(memory, today, new, len(rows), after_new_rows, after_days, base, now)
        if begun is not None:
            memory.forget(begun)
        self._looks.write(memory)
        return Seen(cause, f"{len(rows):,} rows, {new:,} of them new", new, asked)

    def asked(self, now: datetime | None = None) -> None:
        """Remember that a training was asked for: however much comes until it ends asks for no second one."""
        memory = self._looks.read()
        memory.asked_at = now or datetime.now(UTC)
        self._looks.write(memory)

    def _take_training(self, memory: Memory, trained_at: datetime | None) -> None:
        """After a training, what counts as old is what was there when it began, not when it ended."""
        if trained_at is None:
            return
        known = memory.trained_at if self._looks.rows(memory.trained_digest) is not None else None
        if known is not None and trained_at <= known:
            return
        saw = memory.before(trained_at)
        memory.trained_at, memory.trained_digest, memory.base = trained_at, saw.digest, saw.base
        if memory.asked_at is not None and memory.asked_at <= trained_at:
            memory.asked_at = None


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
    if memory.trained_at is not None and base is not None and base != memory.base:
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
