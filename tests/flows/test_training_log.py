"""What the server has of a real training that raises: its traceback and its last words, and few writes before."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.running_stack import Stack, until

SECONDS = 30
COUNTED = ("log INSERT", "artifact INSERT", "artifact UPDATE")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_training_that_raises_ends_in_the_runs_log_after_less_than_one_write_a_second(
    tmp_path: Path, fresh: Any, loraline: Any, standing_server: Any
) -> None:
    (tmp_path / "recipes").mkdir()
    recipe = tmp_path / "recipes" / "endless.yaml"
    text = (fresh.folder / "recipes" / "small.yaml").read_text()
    recipe.write_text(
        text.replace("name: small", "name: endless")
        .replace("train_batch_size: 4", "train_batch_size: 1")
        .replace("max_steps: 6", "max_steps: 100000\n    save_steps: 5")
    )
    server, cli = standing_server(tmp_path), loraline(tmp_path)
    page = Stack(cli, ("--prefect-port", str(urlsplit(server.url).port)), webhook="")
    assert cli.json("deploy", PREFECT_API_URL=server.url)["problems"] == []
    run = page.start("retrain", {"recipe": str(recipe)})
    database = server.home.root / "prefect" / "prefect.db"
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        # Before anything is read: the server writes to the same file.
        connection.execute("CREATE TABLE arrived (at REAL)")
        for number, what in enumerate(COUNTED):
            table, kind = what.split()
            connection.execute(
                f"CREATE TRIGGER arrived_{number} AFTER {kind} ON {table} BEGIN INSERT INTO arrived "
                "VALUES ((julianday('now') - 2440587.5) * 86400); END"
            )
        connection.commit()
        process = server.execute(cli, run)
        try:
            first = until(page.checkpoints, 300)[0]
            began = time.time()
            time.sleep(SECONDS)
            ended = time.time()
            # The next checkpoint finds no folder, which nobody foresees.
            checkpoints = first.parent
            checkpoints.rename(tmp_path / "taken-away")
            checkpoints.write_text("")
            said, _ = process.communicate(timeout=300)
        finally:
            process.kill()
            process.communicate()
        (writes,) = connection.execute(
            "SELECT count(*) FROM arrived WHERE at BETWEEN ? AND ?", (began, ended)
        ).fetchone()
    # Steps and the bar arrive, and never one by one.
    assert SECONDS / 10 <= writes < SECONDS, said[-3000:]

    state = page.end_of(run, 60)
    assert state["type"] == "FAILED", state
    log = "\n".join(page.log_of(run))
    (worker,) = server.home.logs.glob("training-*.log")
    words = [line for line in worker.read_text().splitlines() if not line.startswith("{")]
    trace = words[len(words) - 1 - words[::-1].index("Traceback (most recent call last):") :]
    assert "FileExistsError" in trace[-1] or "NotADirectoryError" in trace[-1], trace
    assert [line for line in trace if line not in log] == []
    assert " of 100,000, loss " in log
