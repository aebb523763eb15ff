"""What grows a little with each run stays bounded, also beside an adapter that is trained no more."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from filelock import FileLock

from tasks.home import Home
from tasks.retention import collecting, growing
from tasks.retention.collecting import collect
from tasks.store import Store

DAY = 86_400.0


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path / "home")
    found.prepare()
    return found


def written(path: Path, days_ago: float, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    then = time.time() - days_ago * DAY
    os.utime(path, (then, then))
    os.utime(path.parent, (then, then))
    return path


def last_run(home: Home, days_ago: float) -> None:
    """The only run of an adapter that nobody trains any more."""
    began = (datetime.now(UTC) - timedelta(days=days_ago)).isoformat()
    entry = {"name": "retired", "started": began, "ended": began, "outcome": "registered"}
    written(home.runs / "retired" / "1.json", days_ago, json.dumps(entry))


def test_logs_of_commands_and_checks_go_with_the_runs_of_their_time(home: Home) -> None:
    last_run(home, 10)
    names = (
        "run-1.log",
        "verify-m-1.log",
        "export-a-3.log",
        "rescore-1.log",
        "inspection.log",
        "conversion.log",
        "predict.log",
        "export-gguf.log",
    )
    old = [written(home.logs / name, 11) for name in names]
    servers = [written(home.logs / name, 11) for name in ("prefect.log", "watchdog.log.3")]
    collect(home, None)
    assert not any(path.exists() for path in old)
    new = [written(home.logs / name, 9) for name in names]
    collect(home, None)
    assert all(path.exists() for path in (*new, *servers))


def test_a_log_that_each_call_adds_to_goes_when_it_is_long(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "LONGEST_LOG", 10_000)
    last_run(home, 10)
    long = written(home.logs / "predict.log", 1, "x" * 20_000)
    short = written(home.logs / "conversion.log", 1)
    busy = written(home.logs / "inspection.log", 0, "x" * 20_000)
    collect(home, None)
    assert [path.exists() for path in (long, short, busy)] == [False, True, True]


def test_an_adapter_that_is_trained_no_more_keeps_nobody_elses_logs_and_reports(home: Home) -> None:
    last_run(home, 200)
    old = written(home.logs / "run-1.log", 100)
    report = written(home.reports / "of-a-run-that-is-kept-no-more" / "report.html", 1)
    new = written(home.logs / "run-2.log", 80)
    collect(home, None)
    assert [path.exists() for path in (old, report, new)] == [False, False, True]


def test_the_older_half_of_too_many_verdicts_goes_and_whole_lines_stay(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "MOST_VERDICTS", 8_000)
    monkeypatch.setattr(collecting, "MOST_VERDICTS", 8_000)
    lines = [json.dumps([f"key-{number:05d}", 0.5]) for number in range(1000)]
    text = "\n".join(lines) + "\n"
    path = written(home.cache / "verdicts.jsonl", 0, text)
    collect(home, None)
    # An evaluation that writes to it just now would lose what it paid for.
    assert path.read_text() == text
    written(path, 1, text)
    collect(home, None)
    left = path.read_text()
    assert 3_900 < len(left) <= 4_000
    assert text.endswith(left)
    assert left.startswith('["key-')


def test_marks_of_rows_and_lock_files_that_nobody_asks_for_go_after_a_week(home: Home) -> None:
    rows = [written(home.cache / "seen_rows" / f"{days}.npy", days) for days in (6, 8)]

    def build(folder: Path) -> None:
        (folder / "rows").write_text("x")

    Store(home.store).publish("dataset", "k" * 64, build)
    locks = [home.store / "dataset" / f".{letter * 64}.lock" for letter in "kab"]
    for lock, days in zip(locks, (30, 30, 6), strict=True):
        written(lock, days)
    held = written(home.store / "dataset" / f".{'c' * 64}.lock", 30)
    with FileLock(held):
        os.utime(held, (0, 0))
        collect(home, None)
    assert [path.exists() for path in rows] == [True, False]
    # That of an output that is there, that of nothing, one of last week, and one that is held.
    assert [path.exists() for path in (*locks, held)] == [True, False, True, True]
