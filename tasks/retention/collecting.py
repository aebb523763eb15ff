"""Find what nothing needs any more in a home, and remove it."""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from tasks.addresses import without_passwords
from tasks.errors import StageFailed
from tasks.home import Home
from tasks.retention.deletions import deleted_runs, deleted_sources
from tasks.retention.finding import candidates
from tasks.retention.growing import MOST_VERDICTS, keep_end
from tasks.retention.needs import Registered, needs_of
from tasks.retention.purging import is_due, purge
from tasks.retention.things import Goes, last_used
from tasks.store import MANIFEST

if TYPE_CHECKING:
    from tasks.tracking import Tracker

GRACE_SECONDS = 600.0
"""What was made or reused so recently stays: its run may not have written it down yet."""
MIN_FREE_FILES = 2_000
"""A disk that takes no more files is full, however much of it is free."""
_log = logging.getLogger(__name__)


@dataclass
class Plan:
    """What goes and what stays."""

    goes: list[Goes] = field(default_factory=list)
    stays: dict[str, str] = field(default_factory=dict)
    """`stage/fingerprint` -> why."""
    deleted_runs: list[str] = field(default_factory=list)
    """MLflow runs that somebody deleted. In a plan: of which those go that were deleted long enough ago."""
    removed: bool = False
    """Whether it was done."""

    @property
    def bytes(self) -> int:
        """Bytes on disk of all that goes."""
        return sum(it.bytes for it in self.goes)


def plan(
    home: Home,
    tracker: "Tracker | None",
    *,
    keep_runs: int | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> Plan:
    """Say what may go. Nothing is touched.

    `tracker`: whose registry names the versions; None where nothing was ever registered.

    Raises: StageFailed when MLflow is away: nobody knows then what its versions need.
    """
    versions = {} if tracker is None else registered_versions(tracker)
    needs = needs_of(home, versions, keep_runs)
    before = time.time() - grace_seconds
    found = Plan()
    for goes in candidates(home, needs, before):
        found.goes.append(goes)
    found.deleted_runs = [] if tracker is None else deleted_runs(tracker)
    found.stays = {f"{stage}/{key}": why for (stage, key), why in sorted(needs.outputs.items())}
    return found


def collect(
    home: Home,
    tracker: "Tracker | None",
    *,
    keep_runs: int | None = None,
    grace_seconds: float = GRACE_SECONDS,
    asked: bool = False,
) -> Plan:
    """Remove what `plan` says; what came into use meanwhile, or cannot be removed, stays.

    `asked`: a person did, who waits for MLflow's part too; else that has its turn once a day.
    Two that collect at once do it one after the other. Raises: as `plan`.
    """
    home.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(home.locks / "gc.lock"):
        found = plan(home, tracker, keep_runs=keep_runs, grace_seconds=grace_seconds)
        before = time.time() - grace_seconds
        found.goes = [goes for goes in found.goes if _remove(goes, before)]
        found.deleted_runs = [] if tracker is None else _purged(tracker, found, asked)
        found.removed = True
    return found


def registered_versions(tracker: "Tracker") -> dict[tuple[str, str], Registered]:
    """Every version in the registry. Raises: StageFailed when MLflow does not answer."""
    from tasks.registry import (
        ADAPTER_TAG,
        STARTED_FROM_TAG,
        aliased_versions,
        logged_model_of,
        versions_of,
    )

    found: dict[tuple[str, str], Registered] = {}
    with tracker.explained("list the registered models"):
        models = list(_all_models(tracker))
    for name in models:
        aliases = aliased_versions(tracker, name)
        for version in versions_of(tracker, name):
            number = str(version.version)
            found[name, number] = Registered(
                tuple(aliases.get(number, ())),
                str(version.run_id or ""),
                str(version.tags.get(ADAPTER_TAG, "")),
                str(version.tags.get(STARTED_FROM_TAG, "")),
                logged_model_of(version) or "",
            )
    return found


def ensure_free(home: Home, tracker: "Tracker", min_free_gb: float) -> None:
    """See that there is room for a run; collect first where there is not.

    Raises: StageFailed when too little is free even then.
    """
    if not (lack := _lack(home, min_free_gb)):
        return
    _log.warning("The disk of %s %s: collecting", home.root, lack)
    freed = collect(home, tracker, asked=True).bytes
    if lack := _lack(home, min_free_gb):
        raise StageFailed(
            f"The disk of {home.root} {lack} ({freed / 1e9:.2f} GB were collected just now). Nothing was trained. Free "
            "some space (`loraline prune NAME` deletes old versions, `loraline gc --keep-runs 1` keeps "
            "less of old runs), point LORALINE_HOME at another disk, or lower retention.min_free_gb."
        )


def _lack(home: Home, min_free_gb: float) -> str:
    """What the disk has too little of; empty where there is enough."""
    if (free := _free_gb(home)) < min_free_gb:
        return f"has {free:.2f} GB free, and retention.min_free_gb asks for {min_free_gb:g}"
    disk = os.statvfs(home.root)
    # Some file systems have no number of files: they say 0 of 0.
    if min_free_gb and disk.f_files and disk.f_favail < MIN_FREE_FILES:
        return f"takes {disk.f_favail:,} more files (inodes, as `df -i` counts them), and a run may make {MIN_FREE_FILES:,}"
    return ""


def _purged(tracker: "Tracker", found: Plan, asked: bool) -> list[str]:
    """Runs that MLflow has given up for good."""
    if not asked and not is_due(tracker, found.deleted_runs):
        return []
    sources = deleted_sources(tracker, registered_versions(tracker))
    for it in sources:
        _log.warning(
            "Version %s of %s came from the MLflow %s %s, which somebody deleted: nothing that is deleted in MLflow "
            "is given up until %s, or `loraline prune %s` deletes the version.",
            *(
                it.version,
                it.model,
                it.kind,
                it.id,
                it.way_back(without_passwords(tracker.uri)),
                it.model,
            ),
        )
    if sources:
        return []
    return purge(tracker, os.environ)


def _free_gb(home: Home) -> float:
    return shutil.disk_usage(home.root).free / 1e9


def _all_models(tracker: "Tracker") -> Iterator[str]:
    token: str | None = None
    while True:
        page = tracker.client.search_registered_models(max_results=100, page_token=token)
        yield from (model.name for model in page)
        token = page.token
        if not token:
            return


def _remove(goes: Goes, before: float) -> bool:
    """Remove one thing; False when it is in use by now, or stays against our will."""
    lock = FileLock(_lock_of(goes))
    guarded = goes.kind in ("output", "draft", "copy", "lock")
    path = goes.path
    try:
        if guarded:
            lock.acquire(timeout=0)
            if goes.kind != "lock" and last_used(goes.path) >= before:
                return False
            # A folder that is half removed must never look complete.
            if goes.kind == "copy":
                path = path.rename(path.with_suffix(".tmp"))
                goes.path.with_suffix(".json").unlink(missing_ok=True)
            elif path.is_dir():
                (path / MANIFEST).unlink(missing_ok=True)
        if goes.kind == "verdicts":
            keep_end(path, MOST_VERDICTS // 2)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except Timeout:
        return False
    except OSError as error:
        _log.warning("%s could not be removed: %s", goes.path, error)
        return False
    finally:
        lock.release()
    return True


def _lock_of(goes: Goes) -> Path:
    """The lock under which a thing is made: beside it, and in the store with a dot before its name."""
    if goes.kind in ("output", "draft"):
        return goes.path.with_name(f".{goes.path.name.lstrip('.').partition('.')[0]}.lock")
    return goes.path.with_suffix(".lock")
