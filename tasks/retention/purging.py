"""Give back the space of what somebody deleted in MLflow, once nobody can want it back: MLflow only marks it."""

import logging
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from tasks.addresses import without_passwords
from tasks.retention.deletions import RESTORABLE_DAYS
from tasks.stack import is_in_postgresql

if TYPE_CHECKING:
    from tasks.tracking import Tracker

TIMEOUT_SECONDS = 120.0
"""For one purge. Each thing goes by itself: what was not reached goes with the next one."""
MLFLOW_DATABASE = "loraline_mlflow"
"""MLflow's database in PostgreSQL, as `loraline up` creates it."""
_ADDRESSES = ("LORALINE_POSTGRES", "LORALINE_LOCK_DATABASE")
"""Where PostgreSQL's address stands: in an operator's shell, and in what the stack starts."""
_OFTEN_SECONDS, _SELDOM_SECONDS = 86_400.0, 7 * 86_400.0
_GONE = "Run with ID "
_log = logging.getLogger(__name__)


def is_due(tracker: "Tracker", runs: Iterable[str]) -> bool:
    """Whether a run is to purge now: it takes seconds, which not every run should.

    With deleted runs once a day, else once a week, for files of versions that were deleted alone.
    """
    if not tracker.owns_artifacts:
        return False
    stamp = _stamp(tracker)
    try:
        age = time.time() - stamp.stat().st_mtime
    except OSError:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
        return any(runs)
    return age > (_OFTEN_SECONDS if any(runs) else _SELDOM_SECONDS)


def purge(
    tracker: "Tracker",
    environ: Mapping[str, str],
    *,
    older_than: str = f"{RESTORABLE_DAYS}d",
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> list[str]:
    """Remove runs, models and experiments that were deleted so long ago, with their files, by MLflow's own
    command; the ids of the runs that went. What fails is a warning: it is tried again another day.
    """
    if not tracker.owns_artifacts:
        return []
    address, secrets = _database(tracker, environ)
    if address is None:
        _log.warning(
            "Nobody says where MLflow's database is, so deleted runs stay: set LORALINE_POSTGRES as for "
            "`loraline up`, and call `loraline gc --yes`."
        )
        return []
    command = [sys.executable, "-P", "-m", "mlflow", "gc", "--older-than", older_than]
    _stamp(tracker).touch()
    try:
        done = subprocess.run(
            [*command, "--backend-store-uri", address],
            env={**environ, **secrets, "MLFLOW_TRACKING_URI": tracker.uri},
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        _log.warning("`mlflow gc` was ended after %g s; the next one goes on", timeout_seconds)
        return _told(error.stdout)
    except OSError as error:
        _log.warning("`mlflow gc` does not start, so deleted runs stay: %s", error)
        return []
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        _log.warning("`mlflow gc` left deleted runs where they are: %s", without_passwords(last))
    return _told(done.stdout)


def _database(tracker: "Tracker", environ: Mapping[str, str]) -> tuple[str | None, dict[str, str]]:
    """The address of MLflow's database, without its password, and the variables that give it."""
    if tracker.uri.startswith("sqlite:"):
        return tracker.uri, {}
    for variable in _ADDRESSES:
        parts = urlsplit(environ.get(variable, "").strip())
        if parts.scheme not in ("postgresql", "postgres"):
            continue
        if variable != _ADDRESSES[0] and parts.path.strip("/") != MLFLOW_DATABASE:
            # Locks may be in any database.
            continue
        query = dict(parse_qsl(parts.query))
        password = query.pop("password", "") or unquote(parts.password or "")
        # Arguments are read by everybody on the machine, and the environment is not.
        place = parts.netloc.rpartition("@")[2]
        who = f"{parts.netloc.rpartition('@')[0].partition(':')[0]}@" if parts.username else ""
        rest = f"?{urlencode(query)}" if query else ""
        address = f"postgresql+psycopg://{who}{place}/{MLFLOW_DATABASE}{rest}"
        return address, {"PGPASSWORD": password} if password else {}
    file = tracker.home.mlflow / "mlflow.db"
    # One that lies beside a stack on PostgreSQL is of the time before it.
    if is_in_postgresql(tracker.home) or not file.is_file():
        return None, {}
    return f"sqlite:///{file}", {}


def _told(output: str | bytes | None) -> list[str]:
    """Runs that went, as the command says it."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    return [
        line.removeprefix(_GONE).partition(" ")[0]
        for line in text.splitlines()
        if line.startswith(_GONE)
    ]


def _stamp(tracker: "Tracker") -> Path:
    return tracker.home.mlflow / ".purged"
