"""System metrics: every run has some, under the names that MLflow's page looks for, and none ends a run."""

import time
from collections.abc import Mapping
from typing import Any

import pytest

from tasks.system_metrics import SWITCH, SystemMetrics


class Points(list[tuple[dict[str, float], int]]):
    """What was handed over."""

    def add(self, values: Mapping[str, float], step: int) -> None:
        self.append((dict(values), step))


def test_a_run_shorter_than_a_sample_has_one_point_under_mlflow_s_names() -> None:
    points = Points()
    SystemMetrics(points.add, sample_seconds=60).stop()
    ((values, step),) = points
    assert step == 0
    assert {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/disk_available_megabytes",
    } <= values.keys()
    assert all(name.startswith("system/") for name in values)
    assert values["system/system_memory_usage_megabytes"] > 0


def busy(points: Points) -> bool:
    """Whether one of the points says that the processor worked."""
    return any(values["system/cpu_utilization_percentage"] > 0 for values, _ in list(points))


def test_points_are_means_of_samples_and_are_counted_up() -> None:
    points = Points()
    machine = SystemMetrics(points.add, sample_seconds=0.02)
    until = time.monotonic() + 60
    # Without a pause, so that the processor has work, which it counts in steps of 10 ms.
    while (len(points) < 3 or not busy(points)) and time.monotonic() < until:
        pass
    machine.stop()
    assert [step for _, step in points] == list(range(len(points)))
    # What the first call returns, without a sample before it, would be zero for ever.
    assert busy(points)
    number = len(points)
    time.sleep(0.1)
    assert len(points) == number


def test_a_monitor_that_does_not_work_here_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.net_io_counters", lambda: None)
    points = Points()
    SystemMetrics(points.add, sample_seconds=60).stop()
    assert not [name for name in points[0][0] if "network" in name]
    assert "system/cpu_utilization_percentage" in points[0][0]


def test_a_monitor_that_fails_later_ends_the_metrics_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import psutil

    working, calls = psutil.virtual_memory, []

    def breaks() -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise OSError("/proc is gone")
        return working()

    monkeypatch.setattr("psutil.virtual_memory", breaks)
    points = Points()
    SystemMetrics(points.add, sample_seconds=60).stop()
    assert points == []
    assert "No further system metrics" in caplog.text


def test_mlflow_s_own_switch_switches_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "false")
    points = Points()
    SystemMetrics(points.add, sample_seconds=0.01).stop()
    assert points == []
