"""Nights of one adapter, a day apart: `python -P tests/fifty_nights.py RECIPE NIGHTS`, a line of JSON for each.

Real runs of the flow, one after the other in one process, on one Prefect server and with real workers. What is
spared is their start alone: they are forked from a process that has imported their libraries, without the
launcher of a training, which on one device only sets variables.
"""

import json
import multiprocessing
import os
import random
import runpy
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tasks import launch
from tasks.errors import WorkerFailed
from tasks.home import Home, home

WORKERS = (
    *("tasks.training.worker", "tasks.evaluation.worker", "tasks.evaluation.score_worker"),
    *("tasks.registration.verify_worker", "mlflow.pyfunc", "peft"),
)
DAY = 86_400
NEW_ROWS = 60
SYLLABLES = [f"{a}{b}" for a in ("par", "de", "in", "re", "con", "un") for b in ("cel", "ton")]
FORKING = multiprocessing.get_context("forkserver")


def forked(
    argv: list[str],
    *,
    log: Path,
    name: str,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    on_line: Callable[[str], None] | None = None,
    environment: dict[str, str] | None = None,
    **_: Any,
) -> None:
    """As `launch.run`, of a worker that is told when it has ended."""
    log.parent.mkdir(parents=True, exist_ok=True)
    before = log.stat().st_size if log.exists() else 0
    told = {**os.environ, **(environment or {})}
    process = FORKING.Process(target=worker, args=(*argv[-2:], log, told))
    process.start()
    process.join()
    said = log.read_bytes()[before:].decode()
    if process.exitcode:
        raise WorkerFailed(f"{name} ended with {process.exitcode}:\n{said[-3000:]}")
    for line in said.splitlines():
        event = launch._event(line)
        if event is not None and on_event is not None:
            on_event(event)
        if event is None and on_line is not None:
            on_line(line)


def worker(module: str, job: str, log: Path, environment: dict[str, str]) -> None:
    """Run a worker's module here, as `python -m` does."""
    os.environ.update(environment)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [module, job]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main(recipe: str, nights: int) -> None:
    """Let them pass; then a person deletes what is old, and a month later it is gone."""
    from flows.cli import main as loraline
    from flows.connection import prefect_connection
    from flows.heartbeats import without_heartbeats

    FORKING.set_forkserver_preload(list(WORKERS))
    launch.run = forked
    state = home()
    state.prepare()
    draw, rows = random.Random(0), list[str]()
    with prefect_connection(state, "a test", lambda _: None), without_heartbeats():
        from flows.retrain import retrain

        for night in range(1, nights + 1):
            # New ones, and yesterday's: every night has as much to do.
            rows = [*rows[-NEW_ROWS:], *(row(draw) for _ in range(NEW_ROWS))]
            Path(recipe).with_name("nightly.jsonl").write_text("".join(rows))
            done = retrain(recipe=recipe)
            told = {"night": night, "outcome": done["outcome"], **on_disk(state)}
            print(json.dumps(told), flush=True)
            pass_by(state, days=1)
    assert loraline(["prune", "nightly", "--yes"]) == 0
    pass_by(state, days=31)
    assert loraline(["gc", "--yes"]) == 0
    print(json.dumps({"night": None, **on_disk(state)}))


def row(draw: random.Random) -> str:
    """A question and its answer that nobody has asked before."""
    words = draw.choices(SYLLABLES, k=16)
    return (
        json.dumps({"prompt": " ".join(words[:8]) + "?", "completion": " ".join(words[8:])}) + "\n"
    )


def on_disk(state: Home) -> dict[str, Any]:
    """Bytes in use on the disk, and in each folder of the state."""
    folders = {path.name: size_of(path) for path in state.root.iterdir() if path.is_dir()}
    stages = {f"store/{path.name}": size_of(path) for path in state.store.iterdir()}
    return {"used": shutil.disk_usage(state.root).used, "folders": {**folders, **stages}}


def size_of(folder: Path) -> int:
    """Bytes on the disk of all its files."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_blocks * 512 for path in files)


def pass_by(state: Home, days: int) -> None:
    """Everything is older by so much: the files, and the times in both databases."""
    for path in state.root.rglob("*"):
        if not path.is_symlink():
            status = path.stat()
            os.utime(path, (status.st_atime - days * DAY, status.st_mtime - days * DAY))
    older = f"date({{0}}, '-{days} days') || substr({{0}}, 11)"
    shift(state.prefect / "prefect.db", ("TIMESTAMP", "DATETIME"), older)
    # Milliseconds since 1970; other numbers of this kind are far smaller or far greater.
    since_1970 = "{0} BETWEEN 1500000000000 AND 2500000000000"
    older = f"CASE WHEN {since_1970} THEN {{0}} - {days * DAY * 1000} ELSE {{0}} END"
    shift(state.mlflow / "mlflow.db", ("BIGINT",), older)


def shift(database: Path, kinds: tuple[str, ...], older: str) -> None:
    """Set every column of these kinds to what `older` makes of it."""
    columns = (
        "SELECT tables.name, columns.name FROM sqlite_master tables, pragma_table_info(tables.name) columns "
        f"WHERE tables.type = 'table' AND columns.type IN ({', '.join('?' * len(kinds))})"
    )
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        for table, column in connection.execute(columns, kinds).fetchall():
            value = older.format(f'"{column}"')
            connection.execute(f'UPDATE "{table}" SET "{column}" = {value}')


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
