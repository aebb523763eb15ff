"""Give back the space of MLflow runs that somebody deleted: MLflow itself only marks them."""

import logging
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.tracking import Tracker

RESTORABLE_DAYS = 30
"""So long a deleted run can be restored (`mlflow runs restore`)."""
_DELETED = 2
"""`mlflow.entities.ViewType.DELETED_ONLY`."""
_PAGE = 1000
_log = logging.getLogger(__name__)


def deleted_runs(tracker: "Tracker", *, days: float = RESTORABLE_DAYS) -> list[str]:
    """Ids of the runs that were deleted so long ago; none where MLflow's files are not this home's.

    Raises: StageFailed when MLflow does not answer.
    """
    if not tracker.owns_artifacts:
        return []
    before = (datetime.now(UTC) - timedelta(days=days)).timestamp() * 1000
    with tracker.explained("list deleted runs"):
        experiments = [it.experiment_id for it in tracker.client.search_experiments()]
        found: list[Any] = []
        for start in range(0, len(experiments), 100):
            some = experiments[start : start + 100]
            found += tracker.client.search_runs(some, run_view_type=_DELETED, max_results=_PAGE)
    # MLflow keeps no time of deletion that its client shows; a run ends before it is deleted.
    return [it.info.run_id for it in found if (it.info.end_time or it.info.start_time) < before]


def purge(tracker: "Tracker", runs: list[str], *, timeout_seconds: float = 600.0) -> bool:
    """Remove deleted runs with their files, by MLflow's own command; False when it fails."""
    if not runs:
        return True
    command = [sys.executable, "-P", "-m", "mlflow", "gc"]
    command += ["--backend-store-uri", f"sqlite:///{tracker.home.mlflow / 'mlflow.db'}"]
    done = subprocess.run(
        [*command, "--run-ids", ",".join(runs)],
        env={**os.environ, "MLFLOW_TRACKING_URI": tracker.uri},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        _log.warning("`mlflow gc` left the deleted runs where they are: %s", last)
    return done.returncode == 0
