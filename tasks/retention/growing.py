"""Find what grows a little with each run and is nobody's output: logs, reports, caches."""

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from tasks.home import Home
from tasks.retention.needs import Needs
from tasks.retention.things import Goes, found, newest, size, written
from tasks.seen import KEPT_SECONDS

_LOGS = tuple(
    f"{what}-*.log"
    for what in ("run", "error", "training", "evaluation", "verify", "export", "rescore")
)
"""Logs of runs and commands. Those of servers are rotated by whoever runs the servers."""
_APPENDED = ("inspection.log", "conversion.log", "predict.log", "export-gguf.log")
"""Logs to which each run of a command adds."""
LONGEST_LOG = 10_000_000
"""Bytes of such a log that stay, however new."""
MOST_VERDICTS = 64_000_000
"""Bytes of the judge's verdicts, some 700,000 of them: beyond that the older half goes."""
OLDEST = timedelta(days=90)
"""Logs and caches older than this go even when a run that old is kept, of an adapter that is trained no more."""


def belongs_before(needs: Needs, before: float) -> float:
    """What belongs to no run that is kept was written before this time."""
    since = needs.since.timestamp() if needs.since else before
    return min(max(since, before - OLDEST.total_seconds()), before)


def logs(home: Home, needs: Needs, before: float, old: float) -> Iterator[Goes]:
    """Logs and reports that belong to no run that is kept."""
    kept = {key[:16] for _, key in needs.outputs}
    for pattern in _LOGS:
        for path in sorted(home.logs.glob(pattern)):
            key = path.stem.partition("-")[2]
            if path.name not in _APPENDED and written(path) < old and key not in kept:
                yield found("log", path)
    # Messages that Prefect's server could not handle: it never reads them again.
    for path in sorted((home.prefect / "dlq").glob("*")):
        if written(path) < old:
            yield found("log", path)
    for path in (home.logs / name for name in _APPENDED):
        if path.is_file() and (
            written(path) < old or (size(path) > LONGEST_LOG and written(path) < before)
        ):
            yield found("log", path)
    for path in sorted(home.reports.glob("*/")):
        if path.name not in needs.mlflow_runs and newest(path) < before:
            yield found("report", path)


def caches(home: Home, needs: Needs, before: float, old: float) -> Iterator[Goes]:
    """What can be computed or downloaded again."""
    for path in sorted((home.cache / "predictions").glob("*")):
        if written(path) < old:
            yield found("cache", path)
    for path in sorted((home.cache / "champions").glob("*/")):
        if path.name not in needs.adapters and newest(path) < old:
            yield found("cache", path)
    for path in sorted((home.cache / "seen_rows").glob("*.npy")):
        if written(path) < before - KEPT_SECONDS:
            yield found("cache", path)
    verdicts = home.cache / "verdicts.jsonl"
    # One that is written to just now would lose what arrives meanwhile.
    if verdicts.is_file() and size(verdicts) > MOST_VERDICTS and written(verdicts) < before:
        yield Goes("verdicts", verdicts, size(verdicts) - MOST_VERDICTS // 2)


def keep_end(path: Path, most: int) -> None:
    """Leave of a file of lines the newest, up to so many bytes. It is there whole at every moment."""
    with path.open("rb") as stream:
        stream.seek(-min(most, path.stat().st_size), os.SEEK_END)
        stream.readline()
        end = stream.read()
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(end)
    temporary.replace(path)
