"""Run this slice's workers: which registry is theirs, nothing secret on disk, failures in words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks import launch
from tasks.errors import ServerAway, StageFailed, WorkerFailed
from tasks.home import Home
from tasks.registration.job import FAILED, NotFinite
from tasks.tracking import Tracker

_KINDS = {kind.__name__: kind for kind in (ServerAway, NotFinite)}
"""Failures that are more than a StageFailed to whoever waits for the worker."""


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

    Raises: StageFailed, of the worker's own kind and in its words; else what `tasks.launch.run` raises.
    """
    failures: list[StageFailed] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == FAILED:
            kind = _KINDS.get(event["kind"], StageFailed)
            failures.append(kind(f"{event['message']} Log: {log}"))
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
            raise failures[-1] from error
        raise
