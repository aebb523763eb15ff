"""Steps that take minutes say how far they are, and when they will be done."""

from typing import Any

import pytest

from tasks.dataset import pace
from tasks.progress import Event, listening


def pair(prompt: str, answer: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer}


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Filled with all that is announced, however fast the rows pass."""
    monkeypatch.setattr(pace, "SECONDS_BETWEEN_EVENTS", 0.0)
    monkeypatch.setattr(pace, "_LOOK_EVERY", 1)
    return []


def test_every_step_that_passes_over_the_rows_announces_them(prepare, words, events) -> None:
    with listening(events.append):
        prepare([pair(words(20), words(20)) for _ in range(60)])

    told = [event for event in events if event["event"] == "prepared"]
    assert {event["stage"] for event in told} == {"dataset"}
    by_step: dict[str, list[Event]] = {}
    for event in told:
        by_step.setdefault(event["step"], []).append(event)
    assert list(by_step) == ["reading", "near duplicates", "decontamination", "writing"]
    for step in ("near duplicates", "decontamination", "writing"):
        last = by_step[step][-1]
        assert last["done"] == last["total"], step
        assert last["eta_seconds"] == 0
        assert by_step[step][0]["eta_seconds"] > 0
    assert by_step["reading"][-1]["done"] == 60
    assert "eta_seconds" not in by_step["reading"][-1]


def test_rows_that_pass_fast_are_announced_about_once_a_second() -> None:
    found: list[Event] = []
    with listening(found.append):
        assert list(pace.Pace("reading", 100_000).over(range(100_000)))[-1] == 99_999

    assert len(found) <= 2
