"""What the task passes on of a worker's events."""

from typing import Any

import pytest

from tasks.progress import listening
from tasks.training import task


class Logger:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str, *values: Any) -> None:
        self.lines.append(text % values)

    def warning(self, text: str, **_: Any) -> None:
        self.lines.append(text)


def step(number: int) -> dict[str, Any]:
    return {
        "event": "step",
        "step": number,
        "total_steps": 100,
        "loss": 2.5,
        "tokens_per_second": 900.0,
        "eta_seconds": 30.0,
    }


def test_listeners_hear_every_step_and_prefect_few(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    shown: list[float] = []
    monkeypatch.setattr(task.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        task, "create_progress_artifact", lambda progress, **_: shown.append(progress) or "id"
    )
    monkeypatch.setattr(
        task, "update_progress_artifact", lambda _, progress: shown.append(progress)
    )
    logger, heard = Logger(), []
    progress = task._Progress(logger)
    with listening(heard.append):
        progress.hear({"event": "note", "message": "Using float32"})
        for number in range(1, 101):
            now[0] += 0.1
            progress.hear(step(number))
    progress.finish()
    assert [e["step"] for e in heard if e["event"] == "step"] == list(range(1, 101))
    assert all(event["stage"] == "training" for event in heard)
    # Ten seconds: a line every two of them and the last step; the artifact every five.
    assert logger.lines[0] == "Using float32"
    assert 5 <= len(logger.lines) - 1 <= 7
    assert "step 100/100: loss 2.5000, 900 tokens/s, 30 s left" in logger.lines
    assert len(shown) == 3
    assert shown[-1] == 100.0


def test_a_server_that_is_away_does_not_stop_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(**_: Any) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(task, "create_progress_artifact", away)
    logger = Logger()
    progress = task._Progress(logger)
    progress.hear(step(1))
    progress.finish()
    assert "The progress artifact could not be updated" in logger.lines
