"""Tokenizing in several processes gives the same output, and leaves none of them behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from tasks.errors import DataError, WorkerFailed
from tasks.progress import listening
from tasks.tokenization import pool as pool_module
from tasks.tokenization import work
from tasks.tokenization.chunks import Setup
from tasks.tokenization.pool import Pool, workers_for
from tasks.tokenization.settings import TokenizationSettings

ROOT = Path(__file__).resolve().parents[3]


def rows(number: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{k:04}",
            "group": "g",
            "messages": [
                {"role": "user", "content": f"Question {k}?"},
                {"role": "assistant", "content": f"Answer {k}." + " more" * (k % 7)},
            ],
            "source": f"s:{k}",
            "label": None,
        }
        for k in range(number)
    ]


def lines(number: int) -> list[bytes]:
    return [json.dumps(row).encode() + b"\n" for row in rows(number)]


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "tasks.tokenization.worker" in child.cmdline()
    ]


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(work, "workers_for", lambda size: 2)
    monkeypatch.setattr(work, "CHUNK", 40)
    yield
    assert children() == []


@pytest.fixture
def setup(make_base: Any) -> Setup:
    return Setup(make_base().path, "tokenizers", TokenizationSettings())


def test_two_processes_write_what_one_writes(
    make_base: Any, tokenize: Any, request: pytest.FixtureRequest
) -> None:
    base = make_base()
    alone = tokenize(base, rows(500), long_rows="drop", max_length=40)
    request.getfixturevalue("two_processes")
    together = tokenize(base, rows(500), long_rows="drop", max_length=40)

    for side in ("train", "test"):
        tables = [pq.read_table(t.path / f"{side}.parquet") for t in (alone, together)]
        assert tables[0].equals(tables[1])
    for name in ("card.json", "summary.md"):
        assert (alone.path / name).read_text() == (together.path / name).read_text()


@pytest.mark.usefixtures("two_processes")
def test_bad_rows_are_all_named_from_all_processes(make_base: Any, tokenize: Any) -> None:
    bad = rows(500)
    for k in (7, 399):
        bad[k]["messages"].insert(0, {"role": "tool", "content": "17 degrees"})

    with pytest.raises(DataError, match="2 of 500 train rows cannot be trained on") as caught:
        tokenize(make_base(), bad)

    assert "(s:7)" in str(caught.value)
    assert "(s:399)" in str(caught.value)


@pytest.mark.usefixtures("two_processes")
def test_progress_is_announced_with_rate_and_time_left(make_base: Any, tokenize: Any) -> None:
    events: list[dict[str, Any]] = []
    with listening(events.append):
        tokenize(make_base(), rows(500))

    told = [event for event in events if event["event"] == "prepared"]
    assert told[0]["stage"] == "tokenization"
    assert told[-1]["done"] == told[-1]["total"] == 501
    assert told[-1]["rows_per_second"] > 0
    assert told[-1]["eta_seconds"] == 0


def test_a_process_that_is_killed_is_explained(setup: Setup) -> None:
    with Pool(setup, 1) as pool:
        (child,) = children()
        child.send_signal(signal.SIGKILL)
        with pytest.raises(WorkerFailed, match=r"ended with code -9 \(killed"):
            list(pool.map([("train", lines(5))]))
    assert children() == []


def test_a_process_that_fails_passes_on_its_traceback(setup: Setup) -> None:
    with Pool(setup, 1) as pool, pytest.raises(WorkerFailed, match="JSONDecodeError"):
        list(pool.map([("train", [b"no json\n"])]))
    assert children() == []


def test_processes_are_gone_when_nobody_reads_on(setup: Setup) -> None:
    with Pool(setup, 2) as pool:
        answers = pool.map(("train", lines(5)) for _ in range(100))
        next(answers)
    assert children() == []


def test_processes_die_with_their_parent(setup: Setup, tmp_path: Path) -> None:
    code = f"""
import json, pathlib, time
from tasks.tokenization.chunks import Setup
from tasks.tokenization.pool import Pool
from tasks.tokenization.settings import TokenizationSettings
pool = Pool(Setup(pathlib.Path({str(setup.base)!r}), "tokenizers", TokenizationSettings()), 2)
print(json.dumps([worker._process.pid for worker in pool._workers]), flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert parent.stdout is not None
    pids = json.loads(parent.stdout.readline())
    assert all(psutil.pid_exists(pid) for pid in pids)

    parent.kill()
    parent.wait()
    parent.stdout.close()

    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def test_processes_are_started_only_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setattr(pool_module, "_room_for", lambda: 100)
    assert workers_for(1_000_000) == 0
    assert workers_for(10**9) == 8
    monkeypatch.setattr(pool_module, "_room_for", lambda: 3)
    assert workers_for(10**9) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert workers_for(10**9) == 0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
