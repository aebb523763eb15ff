"""Close in MLflow the runs of killed processes, and in Prefect what they belonged to, or what no worker ran."""

from collections.abc import Callable, Container
from dataclasses import dataclass

from flows.stack import leftovers
from flows.stack.api import PrefectApi
from flows.stack.reaper import UNFINISHED, attempt_number, end_run
from tasks import run_lease
from tasks.errors import ServerAway, StageFailed
from tasks.home import Home
from tasks.tracking import Tracker

FLOW_RUN_TAG = "loraline.prefect_flow_run_id"
"""Tag of an MLflow run: the Prefect run that writes it."""
ATTEMPT_TAG = "loraline.prefect_attempt"
"""Tag of an MLflow run: which attempt of that run; not on runs that are older than the tag."""
ANSWER_SECONDS = 10
"""For one answer of MLflow. Its own default is two minutes."""
CLIENT = {
    # A server that is away is asked again at the next look, and not for minutes in this one.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(ANSWER_SECONDS),
}
"""The environment of a process that looks for abandoned runs."""


@dataclass
class Abandoned:
    """Looks for runs whose lease the kernel gave back. Waits for MLflow: it wants a thread of its own."""

    api: PrefectApi
    home: Home
    living: Callable[[], Container[str]] = leftovers.living_flow_runs

    def __call__(self) -> None:
        """One look. Raises: StageFailed when a server does not answer, or, after all others, refuses one."""
        # First, since they need no MLflow: killed before it trained, a run has none there.
        self.end_flow_runs()
        refused: StageFailed | None = None
        for run_id in run_lease.abandoned(self.home):
            try:
                closed = Tracker(self.home).close_abandoned(run_id)
            except ServerAway:
                raise
            except StageFailed as error:
                refused = error
                continue
            flow_run = closed.get(FLOW_RUN_TAG, "")
            if not flow_run or flow_run in self.living():
                continue
            self._end(flow_run, float(closed.get(ATTEMPT_TAG, "inf")))
        for opening in run_lease.abandoned(self.home, "opening"):
            try:
                Tracker(self.home).close_opened(opening)
            except ServerAway:
                raise
            except StageFailed as error:
                refused = error
        if refused is not None:
            raise refused

    def end_flow_runs(self) -> None:
        """End in Prefect what commands and containers that were killed left there.

        Raises: StageFailed when it does not answer.
        """
        for lease in run_lease.abandoned(self.home, "flow-run"):
            stopped = run_lease.was_stopped(self.home, lease)
            self._end(*run_lease.attempt_of(lease), stopped=stopped)

    def _end(self, flow_run: str, attempt: float, *, stopped: bool = False) -> None:
        for run in self.api.flow_runs({"id": {"any_": [flow_run]}}):
            # A container that was moved to another machine may have begun the next attempt there.
            if run["state"]["type"] not in UNFINISHED or attempt_number(run) > attempt:
                continue
            if stopped:
                # Nobody need be told of that.
                self.api.end_flow_run(flow_run, "CANCELLED", "A person ended its process.")
            else:
                end_run(self.api, run)
