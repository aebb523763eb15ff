"""What the task passes on of a worker's words: all events to listeners, and little of everything to Prefect."""

import contextlib
import logging
import threading
import time
from typing import Any
from uuid import UUID, uuid4

import pytest

from tasks.progress import listening
from tasks.training import task
from tests.running_stack import until


class Logger:
    """Takes what a run's logger takes."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def log(self, level: int, text: str, *values: Any) -> None:
        self.lines.append((level, text % values))

    def warning(self, text: str, **_: Any) -> None:
        self.lines.append((logging.WARNING, text))


def step(number: int, total: int = 100) -> dict[str, Any]:
    return {
        "event": "step",
        "step": number,
        "total_steps": total,
        "loss": 2.5,
        "tokens_per_second": 8410.4,
        "eta_seconds": 30.0,
    }


def line(text: str) -> dict[str, Any]:
    return {"event": "line", "message": text}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[UUID | None, float, str]]:
    """What Prefect's pages were given: (artifact, or None for a new one; percent; words)."""
    found: list[tuple[UUID | None, float, str]] = []

    def create(percent: float, told: str) -> UUID:
        found.append((None, percent, told))
        return uuid4()

    monkeypatch.setattr(task, "_progress_artifact", create)
    monkeypatch.setattr(task, "_update", lambda *values: found.append(values))
    return found


def test_listeners_hear_every_step_and_prefect_less_than_one_thing_a_second(
    shown: list[tuple[UUID | None, float, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ten times as fast as in life.
    for name in ("SECONDS_BETWEEN_LOG_LINES", "SECONDS_BETWEEN_ARTIFACT_UPDATES"):
        monkeypatch.setattr(task, name, getattr(task, name) / 10)
    logger, heard = Logger(), []
    progress = task._Progress(logger)
    began = time.monotonic()
    with listening(heard.append):
        progress.hear({"event": "note", "message": "Using float32"})
        for number in range(1, 1001):
            progress.hear(step(number, 1000))
            progress.hear(line(f"a warning of a library, {number}"))
            time.sleep(0.002)
    progress.close()
    took = 10 * (time.monotonic() - began)
    assert [e["step"] for e in heard if e["event"] == "step"] == list(range(1, 1001))
    assert all(event["stage"] == "training" for event in heard)
    assert not [e for e in heard if e["event"] == "line"]
    # A last one of each comes at the end, whenever that is.
    assert len(logger.lines) + len(shown) - 2 < took
    assert len(logger.lines) > 5
    assert len(shown) > 2
    # One artifact, and not one a step.
    assert [artifact is None for artifact, *_ in shown] == [True] + [False] * (len(shown) - 1)
    assert len({artifact for artifact, *_ in shown[1:]}) == 1
    assert shown[-1][1:] == (
        100.0,
        "step 1,000 of 1,000, loss 2.500, 8,410 tokens/s, 30 s left",
    )
    words = "\n".join(text for _, text in logger.lines)
    assert "Using float32" in words
    assert "a warning of a library, 1000" in words
    assert "step 1,000 of 1,000, loss 2.500" in logger.lines[-1][1]


def test_a_traceback_stands_in_the_log_whole_readable_and_as_an_error(
    shown: list[tuple[UUID | None, float, str]],
) -> None:
    logger = Logger()
    progress = task._Progress(logger)
    frames = [f'  File "model.py", line {n}, in forward' for n in range(60)]
    progress.hear(step(1))
    time.sleep(0.2)
    for text in ("Traceback (most recent call last):", *frames, "RuntimeError: NaN in layer 3"):
        progress.hear(line(text))
    progress.close()
    level, text = logger.lines[-1]
    assert level == logging.ERROR
    assert text.splitlines()[0] == "Traceback (most recent call last):"
    assert text.splitlines()[1:-1] == frames
    assert text.endswith("RuntimeError: NaN in layer 3")


def test_passwords_in_addresses_that_the_trainer_writes_are_not_passed_on(
    shown: list[tuple[UUID | None, float, str]],
) -> None:
    logger = Logger()
    progress = task._Progress(logger)
    progress.hear(line("cannot reach https://ada:geheim@hub.example/api"))
    progress.close()
    assert logger.lines == [(logging.INFO, "cannot reach https://hub.example/api")]


def test_a_server_that_is_away_does_not_stop_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()

    def away(*_: Any) -> UUID:
        assert answers.wait(60)
        raise ConnectionError("refused")

    monkeypatch.setattr(task, "_progress_artifact", away)
    logger = Logger()
    progress = task._Progress(logger)
    for number in range(1, 101):
        progress.hear(step(number))
    # It heard them all while the server still owed its first answer.
    answers.set()
    progress.close()
    assert (logging.WARNING, "The progress artifact could not be made") in logger.lines


def test_the_last_words_are_passed_on_although_the_training_failed(
    shown: list[tuple[UUID | None, float, str]],
) -> None:
    logger = Logger()
    progress = task._Progress(logger)
    with contextlib.suppress(RuntimeError), contextlib.closing(progress):
        progress.hear(step(1))
        # Written at once; what follows within the second waits for the end.
        until(lambda: logger.lines)
        progress.hear(step(2))
        progress.hear(line("killed"))
        raise RuntimeError
    assert "killed" in logger.lines[-1][1]
    assert "step 2 of 100" in logger.lines[-1][1]
