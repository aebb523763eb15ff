"""Schedules that ask for more than one worker can do: each adapter still gets its turns, and no reason is untrue."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from flows import orderly

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


class Queue:
    """One slot, and a run of each adapter due in each hour; hands them out by due time, as Prefect does."""

    def __init__(self, minutes: dict[str, int], hours: int) -> None:
        self.minutes = minutes
        self.now = BEGIN
        self.here: Any = None
        self.trained: list[Any] = []
        self.runs = [
            SimpleNamespace(
                id=f"{name}-{hour}",
                name=f"{name}-{hour}",
                adapter=name,
                expected_start_time=BEGIN + hour * HOUR + 5 * offset * MINUTE,
                created_by=SimpleNamespace(type="SCHEDULE"),
                tags=[],
                run_count=1,
                state=None,
                state_name="Scheduled",
                end_time=None,
            )
            for hour in range(hours)
            for offset, name in enumerate(minutes)
        ]

    def of_its_schedule(self, here: Any, after: datetime, before: datetime, _: Any) -> list[Any]:
        found = [
            run
            for run in self.runs
            if run.adapter == here.adapter and after <= run.expected_start_time <= before
        ]
        return sorted(found, key=lambda run: run.expected_start_time, reverse=True)

    def work(self, until: datetime) -> None:
        while self.now < until:
            due = [run for run in self.runs if not run.end_time]
            self.here = min(due, key=lambda run: run.expected_start_time)
            self.now = max(self.now, self.here.expected_start_time)
            try:
                orderly.refuse_outdated(self.here.adapter)
            except orderly.NotNow as skipped:
                self.here.state_name = skipped.NAME
                self.here.reason = str(skipped)
                self.now += MINUTE / 4
            else:
                self.here.state_name = "Completed"
                self.trained.append(self.here)
                self.now += self.minutes[self.here.adapter] * MINUTE
            self.here.end_time = self.now

    def trainings(self, name: str) -> list[Any]:
        return [run for run in self.trained if run.adapter == name]


def queue(
    monkeypatch: pytest.MonkeyPatch, minutes: dict[str, int], hours: int, first: datetime = BEGIN
) -> Queue:
    made = Queue(minutes, hours)
    made.now = first
    monkeypatch.setattr(orderly, "_this_run", lambda: made.here)
    monkeypatch.setattr(orderly, "_now", lambda: made.now)
    monkeypatch.setattr(orderly, "_of_its_schedule", made.of_its_schedule)
    return made


def test_an_adapter_behind_one_that_takes_longer_than_the_period_still_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy = queue(monkeypatch, {"long": 70, "short": 10}, hours=60)
    busy.work(until=BEGIN + 24 * HOUR)
    assert len(busy.trainings("short")) >= 8
    assert len(busy.trainings("long")) >= 12
    for name in busy.minutes:
        begun = [run.end_time for run in busy.trainings(name)]
        assert max(b - a for a, b in pairwise(begun)) <= 4 * HOUR
    # Who gave way was told of a run that has trained.
    promised = {run.name for run in busy.trained}
    reasons = [run.reason for run in busy.runs if run.state_name == orderly.NotNow.NAME]
    assert reasons
    assert all(any(f"the run {name}, due" in reason for name in promised) for reason in reasons)


def test_after_a_downtime_there_is_one_run_for_each_adapter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    back = queue(monkeypatch, {"one": 5, "two": 5}, hours=40, first=BEGIN + 20 * HOUR + 30 * MINUTE)
    back.work(until=BEGIN + 22 * HOUR)
    assert [run.name for run in back.trained][:4] == ["one-20", "two-20", "one-21", "two-21"]
