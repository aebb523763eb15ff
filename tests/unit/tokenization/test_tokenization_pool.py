"""Tokenizing in several processes gives the same output, and leaves none of them behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from tasks.errors import DataError, WorkerFailed
from tasks.progress import listening
from tasks.tokenization import pool as pool_module
from tasks.tokenization import work
from tasks.tokenization.chunks import Chunk, ChunkTokenizer, Setup
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


@pytest.fixture
def chunk(tmp_path: Path) -> Chunk:
    return chunk_of(tmp_path, "".join(json.dumps(row) + "\n" for row in rows(5)))


def chunk_of(folder: Path, text: str) -> Chunk:
    file = folder / "train.jsonl"
    file.write_text(text, encoding="utf-8")
    return Chunk("train", file, 0, file.stat().st_size)


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


def test_a_process_that_is_killed_is_explained(setup: Setup, chunk: Chunk, tmp_path: Path) -> None:
    with Pool(1, tmp_path) as pool:
        (child,) = children()
        child.send_signal(signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(WorkerFailed, match=r"ended with code -9 \(killed"):
                list(pool.map([chunk], setup))
    assert children() == []


def test_a_process_that_fails_passes_on_its_traceback(setup: Setup, tmp_path: Path) -> None:
    bad = chunk_of(tmp_path, "no json\n")
    with Pool(1, tmp_path) as pool, pytest.raises(WorkerFailed, match="JSONDecodeError"):
        list(pool.map([bad], setup))
    assert children() == []


def test_processes_and_their_files_are_gone_when_nobody_reads_on(
    setup: Setup, chunk: Chunk, tmp_path: Path
) -> None:
    with Pool(2, tmp_path) as pool:
        answers = pool.map((chunk for _ in range(100)), setup)
        next(answers)
    assert children() == []
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".rows")] == []


def test_answers_come_in_order_whoever_gave_them_and_few_are_held(
    setup: Setup, tmp_path: Path
) -> None:
    """This process tokenizes too while the other one starts, and what it does waits for its turn."""
    text = "".join(json.dumps(row) + "\n" for row in rows(300))
    whole = chunk_of(tmp_path, text)
    chunks, start = [], 0
    for line in text.splitlines(keepends=True):
        chunks.append(Chunk("train", whole.file, start, len(line)))
        start += len(line)
    taken = 0

    def asked() -> Iterator[Chunk]:
        nonlocal taken
        for one in chunks:
            taken += 1
            yield one

    here = ChunkTokenizer.of(setup)
    by_here = []
    tokenize = here.tokenize
    here.tokenize = lambda one: by_here.append(one) or tokenize(one)  # type: ignore[func-returns-value,method-assign]
    ids = []
    with Pool(1, tmp_path) as pool:
        for table, tally in pool.map(asked(), setup, here):
            ids += table["id"].to_pylist()
            assert tally.drops.read == 1
            assert taken - len(ids) <= 12
    assert ids == [row["id"] for row in rows(300)]
    assert 0 < len(by_here) < 300


def test_a_pool_goes_on_with_another_setup_after_the_encoders_disagreed(
    setup: Setup, chunk: Chunk, tmp_path: Path
) -> None:
    with Pool(1, tmp_path) as pool:
        next(pool.map([chunk] * 3, setup))
        shorter = replace(setup, settings=TokenizationSettings(max_length=8, long_rows="drop"))
        ((table, tally),) = pool.map([chunk], shorter)
    assert table.num_rows == 0
    assert tally.drops.reasons["longer than tokenization.max_length"] == 5


def test_processes_die_with_their_parent(tmp_path: Path) -> None:
    code = f"""
import json, pathlib, time
from tasks.tokenization.pool import Pool
pool = Pool(2, pathlib.Path({str(tmp_path)!r}))
print(json.dumps([process._process.pid for process in pool._processes]), flush=True)
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

    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def test_processes_are_started_only_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setattr(pool_module, "_room_for", lambda: 100)
    assert workers_for(1_000_000) == 0
    assert workers_for(10**9) == 7
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
