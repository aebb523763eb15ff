"""A part that dies again and again pauses longer each time, ends when it is told to, and is not shown as well."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.stack import supervisor
from flows.stack.configuration import log_file
from flows.stack.part_process import SOON_SECONDS, count_start, read_starts
from flows.stack.parts import parts
from flows.stack.settings import StackSettings, folder, read_settings, write_settings
from flows.stack.state import PartState, stack_state
from tasks.home import Home
from tests.loopback import free_port
from tests.running_stack import until

ROOT = Path(__file__).resolve().parents[3]
DYING = """
import time
def note(what):
    with open({times!r}, "a") as file:
        print(what, time.time(), file=file)
note("began")
time.sleep({seconds})
note("ended")
raise SystemExit(1)
"""
"""A server that takes a while until it fails."""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Of a stack that has its settings."""
    home = Home((tmp_path / "home").resolve())
    monkeypatch.setenv("LORALINE_HOME", str(home.root))
    home.prepare()
    ports = {"prefect_port": free_port(), "mlflow_port": free_port()}
    write_settings(home, StackSettings.model_validate({"project": tmp_path, **ports}))
    return home


def aged(state: Home, seconds: float) -> None:
    """Move the last start of `mlflow` into the past."""
    path = folder(state) / "starts" / "mlflow.json"
    since = datetime.now(UTC) - timedelta(seconds=seconds)
    path.write_text(json.dumps({**json.loads(path.read_text()), "since": since.isoformat()}))


def test_the_pause_doubles_with_each_early_death_up_to_a_minute(state: Home) -> None:
    pauses = []
    for _ in range(12):
        starts = count_start(state, "mlflow")
        pauses.append(starts.pause_seconds)
        # The pause is no part of its life.
        aged(state, starts.pause_seconds + SOON_SECONDS - 1)
    assert pauses == [0, 0, 0, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    aged(state, 60 + SOON_SECONDS + 1)
    starts_again = count_start(state, "mlflow")
    assert starts_again.pause_seconds == 0
    assert read_starts(state, "mlflow") == starts_again
    assert starts_again.count == 13


def test_a_part_that_pauses_ends_at_once_when_it_is_told_to(state: Home) -> None:
    for _ in range(10):
        count_start(state, "mlflow")
    part = subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.stack.part_process", "mlflow"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=ROOT,
    )
    try:
        assert part.stdout is not None
        assert "60 s of pause" in part.stdout.readline()
        part.send_signal(signal.SIGTERM)
        assert part.wait(timeout=10) == -signal.SIGTERM
    finally:
        part.kill()
        part.communicate()


@pytest.fixture
def dying(state: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A supervised `mlflow` that outlives `startsecs` and dies; the file in which it notes when."""
    times, found = tmp_path / "times", tmp_path / "library"
    found.mkdir()
    (found / "mlflow.py").write_text(DYING.format(times=str(times), seconds=2))
    # It stands before the real one.
    monkeypatch.setenv("PYTHONPATH", f"{found}{os.pathsep}{ROOT}")
    monkeypatch.setattr("flows.stack.configuration.STEADY_SECONDS", 1)
    settings = read_settings(state)
    assert settings is not None
    part = [it for it in parts(settings) if it.name == "mlflow"]
    try:
        supervisor.start(state, part)
        yield times
    finally:
        supervisor.stop(state, part)


@pytest.mark.long
@pytest.mark.enable_socket
def test_a_part_that_dies_some_seconds_after_each_start_is_started_less_and_less_often(
    state: Home, dying: Path
) -> None:
    def paused() -> PartState | None:
        shown = next(it for it in stack_state(state, dict(os.environ)).parts if it.name == "mlflow")
        return shown if "the next attempt is in" in shown.why else None

    shown = until(paused, 120)
    assert shown.state in ("STARTING", "RUNNING")
    assert shown.health == "unhealthy"
    assert shown.restarts >= 3
    until(lambda: dying.exists() and dying.read_text().count("began") >= 5, 120)
    log = log_file(state, "mlflow").read_text()
    notes = [line.split() for line in dying.read_text().splitlines()]
    began, ended = ([float(at) for what, at in notes if what == it] for it in ("began", "ended"))
    gaps = [start - end for start, end in zip(began[1:], ended, strict=False)]
    assert gaps[2] >= 2, (gaps, log)
    assert gaps[3] >= 4, (gaps, log)
