"""Find what nothing needs any more in a home: outputs, checkpoints, records of runs, and what grows beside."""

import json
from collections.abc import Iterator
from pathlib import Path

from tasks.artifacts import STAGES
from tasks.files import is_locked
from tasks.home import Home
from tasks.retention.copies import copies
from tasks.retention.growing import belongs_before, caches, logs
from tasks.retention.needs import Needs
from tasks.retention.things import LOCK_SECONDS, Goes, found, last_used, newest, written

_SCRATCH_SECONDS = 2 * 86_400.0


def candidates(home: Home, needs: Needs, before: float) -> Iterator[Goes]:
    """What may go, of all that was last used before the time `before` (seconds since 1970)."""
    yield from _outputs(home, needs, before)
    yield from _checkpoints(home, needs, before)
    old = belongs_before(needs, before)
    yield from logs(home, needs, before, old)
    yield from caches(home, needs, before, old)
    yield from copies(home, before, old)
    for path in sorted(home.runs.glob("*/*.json")):
        if path not in needs.records and written(path) < before:
            yield found("record", path)


def _outputs(home: Home, needs: Needs, before: float) -> Iterator[Goes]:
    for stage in STAGES:
        for path in sorted((home.store / stage).glob("*")):
            draft = path.name.startswith(".") and path.suffix == ".draft"
            if not path.is_dir() or (path.name.startswith(".") and not draft):
                continue
            if (stage, path.name) not in needs.outputs and last_used(path) < before:
                yield found("draft" if draft else "output", path)
        for path in sorted((home.store / stage).glob(".*.lock")):
            made = home.store / stage / path.stem.lstrip(".")
            if not made.exists() and written(path) < before - LOCK_SECONDS:
                yield found("lock", path)


def _checkpoints(home: Home, needs: Needs, before: float) -> Iterator[Goes]:
    """Working folders. A training's goes with the tokens that it learns from: no run asks for it again."""
    for path in sorted(home.work.glob("*/")):
        kind, _, key = path.name.partition("-")
        if kind not in ("training", "evaluation"):
            # Scratch of a process that no lock tells of.
            if newest(path) < before - _SCRATCH_SECONDS:
                yield found("checkpoints", path)
        elif (
            newest(path) < before
            and not (kind == "training" and ("tokenization", _tokens_of(path)) in needs.outputs)
            and not _building(home, key)
        ):
            yield found("checkpoints", path)


def _building(home: Home, key: str) -> bool:
    """Whether a process makes this output just now."""
    return any(
        is_locked(lock) for stage in STAGES for lock in (home.store / stage).glob(f".{key}*.lock")
    )


def _tokens_of(folder: Path) -> str:
    try:
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        return Path(job["tokens"]).name
    except (OSError, ValueError, KeyError, TypeError):
        return ""
