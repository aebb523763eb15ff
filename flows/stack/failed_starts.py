"""Tell of a stack that cannot start, as after a reboot: who starts it again every few seconds reads no errors.

One alert for a whole row of failed starts, and one more for another reason: the row is remembered on a disk,
since each start is a process of its own, and ends with one that succeeds.
"""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from flows.stack import supervisor
from flows.stack.alerts import Alert, Alerts, memory_of
from flows.stack.configuration import SHORT_FOLDER
from flows.stack.exposure import NO_RESTART
from flows.stack.memory import keep
from flows.stack.settings import folder
from tasks.errors import Interrupted, LoralineError
from tasks.files import is_locked
from tasks.home import Home
from tasks.promotion.notices import Notices, notices_of
from tasks.store import digest

MOST_REASONS = 10
"""So many are told of one row: a text that differs each time is no news each time."""
LONGEST_TEXT = 1500
"""Characters of a reason: the end of a log is part of it, and its ways out stand at both ends."""
INSISTING_SECONDS = (5.0, 10.0, 15.0, 30.0, *[60.0] * 9)
"""Between attempts to tell why a start failed that nothing repeats."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """Starts that failed with none between them that succeeded."""

    since: str
    """When the first one did, ISO 8601 in UTC: what tells this row from the ones before."""
    told: list[str] = field(default_factory=list)
    """Reasons that somebody was told."""


@contextmanager
def failure_told(home: Home) -> Iterator[None]:
    """Tell of the error that leaves the block, in which the stack is started, unless somebody wanted it to end."""
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        try:
            tell_failure(home, error)
        except Exception as other:
            # Never the reason why the command ends otherwise than it would.
            _log.warning("Nobody could be told that the stack did not start: %s", other)
        raise


def tell_failure(home: Home, error: Exception) -> None:
    """Tell why the stack did not start, once in a row, and hand over what waits of it.

    Not where a person reads it, nor where a stack of this home lives after all. Raises: OSError where no
    disk remembers that it was told, or nobody took it.
    """
    if not home.root.is_dir() or _is_attended(home) or supervisor.find(home) is not None:
        return
    row, reason = read_row(home), _essence(error)
    # First: what nobody remembers would be told by every start.
    kept_here = _keep(home, row)
    notices = _notices(home)
    alerts = Alerts(memory_of(home), notices)
    if reason not in row.told and len(row.told) < MOST_REASONS:
        alert = _alert(home, error, f"{row.since} {reason}")
        alerts.tell(alert)
        _keep(home, replace(row, told=[*row.told, reason]))
        if error.__dict__.get("exit_code") == NO_RESTART and not sys.stderr.isatty():
            # No later start delivers it, and the network may not be up yet.
            _insist(notices, alert.id)
    if kept_here:
        # Whoever was away at the first one, as a network that comes up after us. A disk that takes nothing
        # forgets who took it.
        alerts.deliver()


def _insist(notices: Notices, notice_id: str, sleep: Callable[[float], None] = time.sleep) -> None:
    """Deliver until every receiver that this process knows has it, for ten minutes at most."""
    for pause in INSISTING_SECONDS:
        notices.deliver(attempts=1)
        if all((notice_id, name) in notices.taken for name in notices.targets):
            return
        sleep(pause)


def read_row(home: Home) -> Row:
    """The row that goes on, else one that begins now."""
    found = [row for place in _places(home) if (row := _recall(place)) is not None]
    told = dict.fromkeys(reason for row in found for reason in row.told)
    now = datetime.now(UTC).isoformat()
    return Row(min((row.since for row in found), default=now), list(told))


def forget(home: Home) -> None:
    """The stack has started: the row is over."""
    for place in _places(home):
        with suppress(OSError):
            place.unlink(missing_ok=True)


@contextmanager
def attended(home: Home) -> Iterator[None]:
    """A person waits in the block for what a unit starts, and reads why it fails."""
    with ExitStack() as held:
        # Whoever asks whether it is held holds it for a moment.
        with suppress(OSError):
            held.enter_context(FileLock(_attended_file(home), timeout=1))
        yield


def _is_attended(home: Home) -> bool:
    """Whether another command waits for this start, or is at a start of its own."""
    # Asking for a lock makes its file, for which a full disk may have no room.
    locks = (it for it in (_attended_file(home), home.locks / "stack.lock") if it.exists())
    try:
        return any(is_locked(it) for it in locks)
    except OSError:
        return False


def _attended_file(home: Home) -> Path:
    return home.locks / "attended.lock"


def _notices(home: Home) -> Notices:
    """Prefect is the stack's, and whatever answers at its address now is not: it is told when it is back."""
    return replace(notices_of(home, prefect_api=None), others=frozenset({"prefect"}))


def _alert(home: Home, error: Exception, subject: str) -> Alert:
    why = _shortened(_said(error))
    machine = os.uname().nodename
    return Alert(
        "start-failed",
        subject,
        "stack",
        f"The stack of {home.root} on {machine} does not start: {why}\n"
        "Until it does, there are no schedules, no pages and no watchdog. However often it is tried again, "
        "this is not told once more before it has started, or fails for another reason.",
        {"home": str(home.root), "machine": machine},
    )


def _said(error: Exception) -> str:
    if isinstance(error, LoralineError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    half = LONGEST_TEXT // 2
    return f"{text[:half]}\n...\n{text[-half:]}"


def _essence(error: Exception) -> str:
    """What stays of an error in its repetitions: the end of a log, process ids, times and counts do not.

    The number of a port does: two ports are two reasons.
    """
    first = _said(error).partition("\n")[0]
    words = re.sub(r"(?<!Port )(?<!\S)\S*\d\S*", "#", first)
    return f"{type(error).__name__} {words}"[:300]


def _places(home: Home) -> tuple[Path, Path]:
    """The state folder, and a folder that is on another disk as a rule, for when the first takes nothing."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    elsewhere = Path(runtime) if runtime else SHORT_FOLDER / f"loraline-{os.getuid()}"
    name = "failed-start.json"
    return folder(home) / name, elsewhere / f"loraline-{digest(str(home.root))[:16]}-{name}"


def _recall(place: Path) -> Row | None:
    try:
        # In a folder that everybody writes to, it could be somebody else's.
        if place.lstat().st_uid != os.getuid():
            return None
        found = json.loads(place.read_text(encoding="utf-8"))
        return Row(str(found["since"]), [str(it) for it in found["told"]])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(home: Home, row: Row) -> bool:
    """Remember the row; whether the state folder takes it. Raises: OSError where no place does."""
    here, elsewhere = _places(home)
    try:
        keep(here, asdict(row))
    except OSError:
        elsewhere.parent.mkdir(mode=0o700, exist_ok=True)
        keep(elsewhere, asdict(row))
        return False
    return True
