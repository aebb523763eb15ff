"""Find what nothing needs any more in a home: outputs, checkpoints, logs, reports, caches."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from tasks.artifacts import STAGES
from tasks.home import Home
from tasks.retention.needs import Needs
from tasks.store import MANIFEST

Kind = Literal["output", "draft", "checkpoints", "log", "report", "cache", "record"]
_LOGS = ("run-*.log", "error-*.log", "training-*.log", "evaluation-*.log")
"""Logs of runs. Those of servers are rotated by whoever runs the servers."""
_SCRATCH_SECONDS = 2 * 86_400.0


@dataclass(frozen=True)
class Goes:
    """One thing that nothing needs."""

    kind: Kind
    path: Path
    bytes: int


def candidates(home: Home, needs: Needs, before: float) -> Iterator[Goes]:
    """What may go, of all that was last used before the time `before` (seconds since 1970)."""
    yield from _outputs(home, needs, before)
    yield from _checkpoints(home, needs, before)
    since = needs.since.timestamp() if needs.since else before
    old = min(since, before)
    kept_logs = {key[:16] for _, key in needs.outputs}
    for pattern in _LOGS:
        for path in sorted(home.logs.glob(pattern)):
            key = path.stem.partition("-")[2]
            if _written(path) < old and key not in kept_logs:
                yield _goes("log", path)
    for path in sorted(home.reports.glob("*/")):
        if path.name not in needs.mlflow_runs and _written(path) < old:
            yield _goes("report", path)
    for path in sorted((home.cache / "predictions").glob("*")):
        if _written(path) < old:
            yield _goes("cache", path)
    for path in sorted((home.cache / "champions").glob("*/")):
        if path.name not in needs.adapters and _newest(path) < old:
            yield _goes("cache", path)
    yield from _hub_copies(home, old)
    for path in sorted(home.runs.glob("*/*.json")):
        if path not in needs.records and _written(path) < before:
            yield _goes("record", path)


def _outputs(home: Home, needs: Needs, before: float) -> Iterator[Goes]:
    for stage in STAGES:
        for path in sorted((home.store / stage).glob("*")):
            draft = path.name.startswith(".") and path.suffix == ".draft"
            if not path.is_dir() or (path.name.startswith(".") and not draft):
                continue
            if (stage, path.name) not in needs.outputs and last_used(path) < before:
                yield _goes("draft" if draft else "output", path)


def _checkpoints(home: Home, needs: Needs, before: float) -> Iterator[Goes]:
    """Working folders. A training's goes with the tokens that it learns from: no run asks for it again."""
    for path in sorted(home.work.glob("*/")):
        kind, _, key = path.name.partition("-")
        if kind not in ("training", "evaluation"):
            # Scratch of a process that no lock tells of.
            if _newest(path) < before - _SCRATCH_SECONDS:
                yield _goes("checkpoints", path)
        elif (
            _newest(path) < before
            and not (kind == "training" and ("tokenization", _tokens_of(path)) in needs.outputs)
            and not _building(home, key)
        ):
            yield _goes("checkpoints", path)


def _building(home: Home, key: str) -> bool:
    """Whether a process makes this output just now."""
    return any(
        _locked(lock) for stage in STAGES for lock in (home.store / stage).glob(f".{key}*.lock")
    )


def _tokens_of(folder: Path) -> str:
    try:
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        return Path(job["tokens"]).name
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _hub_copies(home: Home, old: float) -> Iterator[Goes]:
    """Datasets of the Hub at commits that are no branch's newest any more."""
    folder = home.cache / "sources" / "hub"
    try:
        newest = set(json.loads((folder / "commits.json").read_text(encoding="utf-8")).values())
    except (OSError, ValueError, AttributeError):
        return
    for path in sorted(folder.glob("*/")):
        try:
            commit = json.loads((path / "job.json").read_text(encoding="utf-8"))["commit"]
        except (OSError, ValueError, KeyError):
            continue
        if commit not in newest and _newest(path) < old:
            yield _goes("cache", path)


def _locked(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _goes(kind: Kind, path: Path) -> Goes:
    return Goes(kind, path, _size(path))


def _size(path: Path) -> int:
    files = [it for it in path.rglob("*") if it.is_file()] if path.is_dir() else [path]
    # Blocks, not lengths: what the disk gets back.
    return sum(_blocks(it) for it in files)


def _blocks(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0


def last_used(output: Path) -> float:
    """When an output was last made or reused: its manifest is touched then."""
    manifest = output / MANIFEST
    return _written(manifest) if manifest.exists() else _newest(output)


def _newest(folder: Path) -> float:
    return max((_written(it) for it in (folder, *folder.rglob("*"))), default=0.0)


def _written(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0
