"""What grows a little with each run stays bounded, also beside an adapter that is trained no more."""

import json
import os
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tasks.dataset.reading.opening import open_sources
from tasks.dataset.settings import DatasetSettings
from tasks.home import Home
from tasks.retention import collecting, growing
from tasks.retention.collecting import collect, plan
from tasks.store import Store, digest

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


def opened(home: Home, folder: Path, *sources: dict[str, Any]) -> None:
    """As a run, a check or a look opens them."""
    settings = DatasetSettings.model_validate({"sources": sources})
    open_sources(settings, folder, cache=home.cache / "sources")


def a_day_later(home: Home) -> None:
    for path in (home.cache / "sources").rglob("*"):
        then = path.stat().st_mtime - DAY
        os.utime(path, (then, then))


def test_copies_of_remote_data_go_when_no_run_of_late_has_read_them(
    home: Home, tmp_path: Path, shared_bucket: Any
) -> None:
    sources = home.cache / "sources"
    with sqlite3.connect(tmp_path / "chats.db") as connection:
        connection.execute("CREATE TABLE chats (id INTEGER, prompt TEXT, completion TEXT)")
        connection.execute("INSERT INTO chats VALUES (1, 'q', 'a')")
    sources.mkdir(parents=True)
    for night in range(10):
        row = json.dumps({"prompt": f"q {night}", "completion": "a"}) + "\n"
        shared_bucket.put_object(Key=f"days/{night}.jsonl", Body=row.encode())
        shared_bucket.Object(f"days/{night - 3}.jsonl").delete()
        query = f"SELECT * FROM chats ORDER BY id -- version {night // 3}"
        opened(
            home,
            tmp_path,
            {"type": "jsonl", "path": "s3://shared/days/"},
            {"type": "sql", "database": "chats.db", "query": query},
        )
        a_day_later(home)
    last_run(home, 2.5)
    before = sorted(home.root.rglob("*"))
    assert {it.kind for it in plan(home, None).goes} == {"copy"}
    assert sorted(home.root.rglob("*")) == before

    collect(home, None)

    copies = [path for path in (sources / "files").iterdir() if not path.suffix]
    assert {json.loads(path.read_text())["prompt"] for path in copies} == {
        f"q {night}" for night in (6, 7, 8, 9)
    }
    assert len(list((sources / "files").glob("*.json"))) == 4
    # Two of the query's versions, with their locks.
    assert len(list((sources / "sql").glob("*/state.json"))) == 2
    for _ in range(8):
        a_day_later(home)
    collect(home, None)
    assert not [path for path in sources.glob("*/*") if path.suffix != ".lock"]
    collect(home, None)
    assert not list(sources.glob("*/*.lock"))


def test_a_copy_that_is_in_use_or_of_today_stays_though_no_run_is_known(home: Home) -> None:
    folder = home.cache / "sources" / "files"
    today, fetching, read, gone = (written(folder / f"{name}{'0' * 31}", 3) for name in "abcd")
    written(today.with_suffix(".json"), 0.5)
    written(read.with_suffix(".json"), 3)
    left = written(folder / f"{'e' * 32}.77.tmp", 3)
    with FileLock(fetching.with_suffix(".lock")):
        found = plan(home, None)
        assert {it.path for it in found.goes} == {fetching, read, gone, left}
        # A run begins to read it between the plan and its turn.
        os.utime(read.with_suffix(".json"))
        removed = [collecting._remove(goes, time.time() - 600) for goes in found.goes]
    assert removed.count(True) == 2
    kept = [it.exists() for it in (today, fetching, read, gone, left)]
    assert kept == [True, True, True, False, False]


def test_rows_that_a_query_gathered_outlive_a_long_outage(home: Home) -> None:
    last_run(home, 2)
    sql = home.cache / "sources" / "sql"
    for days in (30, 80, 95):
        written(sql / str(days) / "rows.jsonl", days, "{}\n")
        written(sql / str(days) / "state.json", days, json.dumps({"last": {"value": 1}}))
    collect(home, None)
    assert {it.name for it in sql.glob("*/")} == {"30", "80"}


def hub_copy(home: Home, name: str, commit: str, *files: str) -> None:
    folder = home.cache / "sources" / "hub" / name
    for file in ("job.json", *files):
        written(folder / file, 5, json.dumps({"commit": commit}))


def test_commits_that_recipes_named_go_at_last(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    last_run(home, 2)
    hub = home.cache / "sources" / "hub"
    for days in (80, 95):
        for file in ("job.json", "result.json"):
            written(hub / str(days) / file, days, json.dumps({"commit": "c" * 40}))
    collect(home, None)
    assert {it.name for it in hub.glob("*/")} == {"80"}


@pytest.mark.parametrize("why", ["pinned", "offline", "unreadable", ""])
def test_whole_copies_of_the_hub_stay_where_it_is_not_asked(
    why: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if why == "offline" else "0")
    last_run(home, 2)
    hub_copy(home, "whole", "c" * 40, "rows.parquet", "result.json")
    hub_copy(home, "failed", "d" * 40, "downloads")
    if why != "pinned":
        known = "{" if why == "unreadable" else json.dumps({"team/chats@main": "d" * 40})
        written(home.cache / "sources" / "hub" / "commits.json", 5, known)
    collect(home, None)
    left = {it.name for it in (home.cache / "sources" / "hub").glob("*/")}
    # What a failed download left is not kept for being of a branch's newest commit.
    assert left == ({"whole"} if why else set())


def test_a_dataset_of_the_hub_stays_while_it_is_used_or_the_newest(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    last_run(home, 2)
    hub = home.cache / "sources" / "hub"
    pinned = {"type": "huggingface", "id": "team/chats", "revision": "c" * 40}
    commits = {"c" * 40: "c", "a" * 40: "moved", "b" * 40: "tip"}
    for commit, name in commits.items():
        name = digest(["team/chats", commit, None, "train"])[:32] if name == "c" else name
        hub_copy(home, name, commit, "rows.parquet", "result.json")
    written(hub / "commits.json", 5, json.dumps({"team/chats@main": "b" * 40}))
    opened(home, home.root, pinned)

    collect(home, None)

    left = [json.loads((it / "job.json").read_text())["commit"][0] for it in hub.glob("*/")]
    assert sorted(left) == ["b", "c"]
    assert (hub / "commits.json").is_file()


def test_messages_that_prefect_gave_up_go_with_the_runs_of_their_time(home: Home) -> None:
    last_run(home, 10)
    old, new = (written(home.prefect / "dlq" / f"{days}", days) for days in (11, 9))
    collect(home, None)
    assert [path.exists() for path in (old, new)] == [False, True]
