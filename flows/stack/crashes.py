"""Tell of runs that crashed or failed, whoever noticed it, and start a crashed retraining once more."""

import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from flows.stack.alerts import Alert, Alerts
from flows.stack.api import Json, PrefectApi
from flows.stack.recipes import recipe_of_run
from tasks.errors import StageFailed

AGAIN = "loraline:again"
"""Tag of a run that was started because the one before it crashed; it is not repeated in its turn."""
RETRAIN = "retrain"
"""The deployment whose runs go on from a checkpoint."""
LOOK_BACK = timedelta(days=7)
"""Older ends are no news, also for a watchdog that was away."""
_log = logging.getLogger(__name__)


@dataclass
class Crashes:
    """Looks for runs that ended badly since the watchdog first ran."""

    api: PrefectApi
    alerts: Alerts
    _names: dict[str, str] = field(default_factory=dict)
    """Deployment -> its name."""

    def __call__(self) -> None:
        """One look. Raises: StageFailed when Prefect does not answer."""
        since = max(self.alerts.since, datetime.now(UTC) - LOOK_BACK)
        ended = self.api.flow_runs(
            {
                "state": {"type": {"any_": ["CRASHED", "FAILED"]}},
                "end_time": {"after_": since.isoformat()},
            }
        )
        for run in ended:
            alert = self._alert(run)
            if run.get("parent_task_run_id") or self.alerts.is_told(alert):
                # A flow inside another: the outer one is told of.
                continue
            if run["state"]["type"] == "FAILED" and not run.get("deployment_id"):
                # A command on a terminal: whoever gave it has read why it failed.
                continue
            is_retraining = self._is_retraining(run)
            if not is_retraining and not run.get("start_time"):
                # It never began, and its schedule brings the next one soon.
                continue
            # Before the alert: killed in between, Prefect knows the repetition by its key.
            if is_retraining and run["state"]["type"] == "CRASHED":
                alert = replace(alert, text=f"{alert.text} {self._repeat(run)}")
            self.alerts.tell(alert)

    def _alert(self, run: Json) -> Alert:
        kind = run["state"]["type"].lower()
        recipe = recipe_of_run(self.api, run)
        name = str(run["parameters"].get("name") or recipe or run["name"])
        message = str(run["state"].get("message") or "")[:1000]
        return Alert(
            kind,
            run["id"],
            name,
            f"The run {run['name']} {kind}" + (f" ({recipe})" if recipe else "") + f": {message}",
            {"flow_run": run["id"], "run_name": run["name"], "ended": run.get("end_time")},
        )

    def _is_retraining(self, run: Json) -> bool:
        if not run.get("deployment_id"):
            return False
        if run["deployment_id"] not in self._names:
            path = f"/deployments/{run['deployment_id']}"
            self._names[run["deployment_id"]] = self._name(path)
        return self._names[run["deployment_id"]] == RETRAIN

    def _name(self, path: str) -> str:
        try:
            return str(self.api.ask("GET", path)["name"])
        except StageFailed as error:
            if "status 404" not in str(error):
                raise
            # Deleted since.
            return ""

    def _repeat(self, run: Json) -> str:
        """Start it once more, unless it is a repetition itself; what was done, for the alert."""
        if AGAIN in run.get("tags", []):
            return "It was started again after a crash already, and is not started once more."
        recipe = recipe_of_run(self.api, run)
        created = self.api.ask(
            "POST",
            f"/deployments/{run['deployment_id']}/create_flow_run",
            {
                "parameters": {**run["parameters"], **({"recipe": recipe} if recipe else {})},
                "tags": [*run.get("tags", []), AGAIN],
                "idempotency_key": f"again-{run['id']}",
                "state": {"type": "SCHEDULED", "message": f"Goes on where {run['name']} crashed"},
            },
        )
        _log.warning("Flow run %s crashed; %s goes on", run["id"], created["id"])
        return "It was started again, and goes on from its last complete checkpoint."
