"""Runs of Prefect's that its server would delete at its next look, each hour: nobody who collects need wait for it."""

import os
from datetime import UTC, datetime, timedelta

from flows.connection import RUNS_KEPT_DAYS
from flows.stack.api import PrefectApi
from tasks.home import Home
from tasks.stack import running

ENDED = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]


def own_prefect(home: Home) -> PrefectApi | None:
    """The Prefect server that stands for this home; None without one. A server of the user's is not ours to clear."""
    server = running(home, "prefect")
    return None if server is None else PrefectApi.of(os.environ, server.url)


def long_ended(api: PrefectApi) -> list[str]:
    """Ids of what the server's own look would find. Raises: StageFailed when it does not answer."""
    before = datetime.now(UTC) - timedelta(days=RUNS_KEPT_DAYS)
    found = api.flow_runs(
        {
            "end_time": {"before_": before.isoformat()},
            "state": {"type": {"any_": ENDED}},
            # A run inside another goes with it.
            "parent_task_run_id": {"is_null_": True},
        }
    )
    return [run["id"] for run in found]
