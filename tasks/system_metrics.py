"""What the machine does during a run: processors, memory, disk, network and GPUs, as MLflow's monitors see them."""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
"""MLflow's own variable: `false` switches it off, which is on otherwise."""
PREFIX = "system/"
"""Of the names, by which MLflow's page finds them."""
SAMPLE_SECONDS = 10.0
SAMPLES_A_POINT = 3
"""Means of so many samples are sent: a run of three days has 9,000 points of each name."""
_log = logging.getLogger(__name__)


class SystemMetrics:
    """Takes samples from a thread of its own until `stop`, and hands their means to `add`.

    MLflow's monitors, but not its thread: that one ends for good at the first answer that does not come.
    """

    def __init__(
        self,
        add: Callable[[Mapping[str, float], int], None],
        *,
        sample_seconds: float = SAMPLE_SECONDS,
    ) -> None:
        """`add` takes values and the number of the point, and neither waits nor raises."""
        self._add = add
        self._seconds = sample_seconds
        self._points = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)
        if os.environ.get(SWITCH, "").lower() not in ("false", "0"):
            self._thread.start()

    def stop(self) -> None:
        """Hand over what was seen since the last point: a short run has one point all the same."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            monitors = _monitors()
            stopped = False
            while not stopped:
                for _ in range(SAMPLES_A_POINT):
                    stopped = self._stopping.wait(self._seconds)
                    for monitor in monitors:
                        monitor.collect_metrics()
                    if stopped:
                        break
                self._send(monitors)
        except Exception:
            # Never a reason for a run to end.
            _log.warning("No further system metrics of this run", exc_info=True)

    def _send(self, monitors: list[Any]) -> None:
        values: dict[str, float] = {}
        for monitor in monitors:
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        self._add({f"{PREFIX}{name}": value for name, value in values.items()}, self._points)
        self._points += 1


def _monitors() -> list[Any]:
    """Those that work on this machine: a container may hide its network, most machines have one kind of GPU."""
    import psutil
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    # What it returns is of the time since its last call: the first tells nothing.
    psutil.cpu_percent()
    found: list[Any] = []
    kinds: tuple[Any, ...] = (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor, ROCMMonitor)
    for kind in kinds:
        try:
            monitor = kind()
            monitor.collect_metrics()
        except Exception as error:
            _log.debug("%s does not work here: %s", kind.__name__, error)
            continue
        monitor.clear_metrics()
        found.append(monitor)
    return found
