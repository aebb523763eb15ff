"""Find copies of remote data that nobody has read for as long as runs are kept."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.home import Home
from tasks.retention.growing import OLDEST
from tasks.retention.things import LOCK_SECONDS, Goes, found, last_used, written

_READ_SECONDS = 86_400.0
"""What a check or a look at the data reads, which are no runs, stays for so long at least."""


def copies(home: Home, before: float, old: float) -> Iterator[Goes]:
    """Of files behind URLs, of queries and of datasets of the Hub: what was not read since `old` can be had again.

    The rows of a query with a watermark, perhaps of many months, cannot where the database has deleted
    them since, nor perhaps datasets where recipes name commits and the Hub was never asked for another: they
    stay for the longest time.
    """
    sources = home.cache / "sources"
    old, oldest = min(old, before - _READ_SECONDS), before - OLDEST.total_seconds()
    # What a process that was killed left behind.
    for path in sorted((*sources.glob("*/*.tmp"), *sources.glob("sql/*/*.tmp"))):
        if written(path) < old:
            yield found("cache", path)
    for path in sorted(sources.glob("*/*.lock")):
        if not path.with_suffix("").exists() and written(path) < before - LOCK_SECONDS:
            yield found("lock", path)
    tips = _tips(sources / "hub")
    for path in sorted(it for it in sources.glob("*/*") if not it.suffix):
        limit = oldest if _grows(path) or (tips == set() and _is_whole(path)) else old
        if last_used(path) < limit and not _answers_for_the_hub(path, tips):
            yield found("copy", path)


def _grows(copy: Path) -> bool:
    """Whether rows of earlier runs are kept there, by a watermark."""
    return bool((_read(copy / "state.json") or {}).get("last"))


def _tips(folder: Path) -> set[str] | None:
    """Commits that a run takes when the Hub is silent: each branch's newest. None: it is silent, or nobody can tell."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return None
    commits = folder / "commits.json"
    known = _read(commits) if commits.exists() else {}
    return None if known is None else set(known.values())


def _answers_for_the_hub(copy: Path, tips: set[str] | None) -> bool:
    return _is_whole(copy) and (
        tips is None or (_read(copy / "job.json") or {}).get("commit") in tips
    )


def _is_whole(copy: Path) -> bool:
    """Whether it is a dataset of the Hub. What says so is written last: a download that failed has left none."""
    return (copy / "result.json").is_file()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
