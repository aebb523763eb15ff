"""Run this slice's workers: which registry is theirs, nothing secret on disk, failures in words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks import launch
from tasks.errors import StageFailed, WorkerFailed
from tasks.home import Home
from tasks.registration.job import FAILED
from tasks.tracking import Tracker


def run_worker(
    module: str,
    job: Path,
    *,
    tracker: Tracker,
    home: Home,
    log: Path,
    name: str,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    timeout_seconds: float | None = None,
) -> None:
    """Run a worker of this slice on its job file, with the tracker's registry as MLflow's default.

    Raises: StageFailed in the worker's own words; else what `tasks.launch.run` raises.
    """
    failures: list[str] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == FAILED:
            failures.append(str(event["message"]))
        elif on_event is not None:
            on_event(event)

    try:
        launch.run(
            launch.module(module, str(job)),
            log=log,
            name=name,
            # The URI may hold a password: it goes through the environment and never into a file.
            environment={
                **home.environment(),
                "MLFLOW_TRACKING_URI": tracker.uri,
                "MLFLOW_REGISTRY_URI": tracker.uri,
            },
            on_event=listen,
            timeout_seconds=timeout_seconds,
            # Its folder is removed, whatever happens.
            repeatable=False,
        )
    except WorkerFailed as error:
        if failures:
            raise StageFailed(f"{failures[-1]} Log: {log}") from error
        raise
