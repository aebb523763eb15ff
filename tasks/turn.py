"""One run of an adapter at a time: a lock that the death of its holder frees, with a note of who has it."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from tasks.advisory_lock import AdvisoryLock
from tasks.errors import StageFailed
from tasks.files import is_locked
from tasks.home import Home

_POLL_SECONDS = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who has the turn, for those who want it."""

    run: str
    """Name of the flow run, or the command."""
    pid: int
    since: str
    """UTC, ISO 8601."""
    url: str | None = None

    def __str__(self) -> str:
        where = f" ({self.url})" if self.url else f" (process {self.pid})"
        return f"{self.run}{where} since {self.since} UTC"


class Taken(StageFailed):
    """Another run of the adapter has the turn."""


class Turn:
    """A turn that is held."""

    def __init__(self, advisory: AdvisoryLock | None) -> None:
        self._advisory = advisory

    def check(self) -> None:
        """See that nobody else can have it by now. Raises: StageFailed when it is lost.

        The kernel takes a file lock from nobody. A connection to PostgreSQL may break during hours of
        training: then the lock is taken again, unless another run was faster.
        """
        if self._advisory is not None and not self._advisory.still_held():
            raise StageFailed(
                "The connection to PostgreSQL that kept other runs of this adapter away broke, and "
                "another run has the turn by now. This one stops; what it completed is in the store, "
                "and the next run goes on from there."
            )


@contextmanager
def adapter_turn(
    home: Home,
    name: str,
    *,
    run: str,
    url: str | None = None,
    database: str | None = None,
    within_seconds: float = math.inf,
    say: Callable[[str], None] = _log.info,
) -> Iterator[Turn]:
    """Be the only run that trains the adapter `name`, for as long as the block lasts.

    On one machine a kernel file lock in the home decides; with `database` (`postgresql://...`) its
    advisory lock keeps other machines away too. It is said once who has the turn, and waited for so long.

    Raises: Taken when another run still has it then; StageFailed when PostgreSQL is away.
    """
    home.locks.mkdir(parents=True, exist_ok=True)
    path = home.locks / f"adapter-{quote(name, safe='')}.lock"
    note = path.with_suffix(".json")
    told = asked = False
    until = time.monotonic() + within_seconds
    with ExitStack() as held:
        while True:
            if (turn := _taken(path, database, name, held)) is not None:
                break
            if not asked:
                # `is_taken` has the lock for a moment, and who takes it has yet to write the note.
                asked = True
                time.sleep(_POLL_SECONDS)
                continue
            holder = _holder(note)
            if time.monotonic() >= until:
                raise Taken(f"{name} is being trained by {holder or 'another machine'}.")
            if not told:
                say(
                    f"{name} is being trained by {holder or 'another machine'}: waiting for it to end."
                )
                told = True
            time.sleep(_POLL_SECONDS)
        me = Holder(run, os.getpid(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"), url)
        _write(note, me)
        held.callback(note.unlink, missing_ok=True)
        yield turn


def is_taken(home: Home, name: str) -> bool:
    """Whether a run of this machine has the turn."""
    path = home.locks / f"adapter-{quote(name, safe='')}.lock"
    return path.exists() and is_locked(path)


def _taken(path: Path, database: str | None, name: str, held: ExitStack) -> Turn | None:
    """Take the file's lock and the database's; None, and neither is kept, when another has one."""
    with ExitStack() as attempt:
        lock = FileLock(path, mode=0o666)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        attempt.callback(lock.release)
        advisory = None
        if database is not None:
            advisory = AdvisoryLock(database, f"loraline training of {name}")
            attempt.callback(advisory.close)
            if not advisory.acquire():
                return None
        held.push(attempt.pop_all())
        return Turn(advisory)


def _holder(note: Path) -> Holder | None:
    try:
        return Holder(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        # Between its lock and its note.
        return None


def _write(note: Path, holder: Holder) -> None:
    temporary = note.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(holder)), encoding="utf-8")
    temporary.replace(note)
