"""Tell of runs that crashed or failed, whoever noticed it, and start a crashed retraining once more."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flows.recipe_heading import heading_of
from flows.stack.alerts import RUNS_REMEMBERED, Alert, Alerts, attempt_of
from flows.stack.api import Json, PrefectApi
from flows.stack.recipes import recipe_of_run
from flows.stack.streaks import Streak, series_of, streaks
from tasks.errors import LoralineError, StageFailed
from tasks.files import expanded

AGAIN = "loraline:again"
"""Tag of a run that was started because the one before it crashed; when it crashes, too, it is not repeated."""
AFTER_STOP = "loraline:after-stop"
"""Beside `AGAIN`: only stops of the stack ended the runs before it, so that it is repeated when it crashes."""
RETRAIN = "retrain"
"""The deployment whose runs go on from a checkpoint."""
LOOK_BACK = RUNS_REMEMBERED - timedelta(days=1)
"""Older ends are no news, also for a watchdog that was away."""
OVERLAP = timedelta(hours=1)
"""Between what two looks ask for: no run's end reaches Prefect so late."""
_AGAIN_KEY = "again-"
_log = logging.getLogger(__name__)


def repetition_key(run_id: str, run_count: int | None = None) -> str:
    """Idempotency key of the run in which a crashed attempt goes on: there is one at most."""
    return f"{_AGAIN_KEY}{attempt_of(run_id, run_count)}"


def repeated_run(key: str | None) -> str | None:
    """Id of the crashed run that one with this idempotency key goes on with; None where it is no repetition."""
    return key.removeprefix(_AGAIN_KEY).split()[0] if key and key.startswith(_AGAIN_KEY) else None


@dataclass
class Crashes:
    """Looks for runs that ended badly since the watchdog first ran.

    Each retraining is told, and each run that a person started on a terminal and that was killed. Of all
    else that runs again and again only the first failure is, until a run succeeds.
    """

    api: PrefectApi
    alerts: Alerts
    project: Path = Path()
    """Where the paths of recipes start, as the workers see them."""
    cut_off: Callable[[Json], bool] = lambda _: False
    """Whether the stack was stopped on purpose while a run was under way: that it goes on then costs it
    nothing of the one repetition that a crash has, however often."""
    _names: dict[str, str] = field(default_factory=dict)
    """Deployment -> its name."""
    _looked: datetime | None = None
    """When the last look began that saw everything."""
    _seen: set[str] = field(default_factory=set)
    """Ended attempts that were told by then, or need not be."""

    def __call__(self) -> None:
        """One look. Raises: StageFailed when Prefect does not answer."""
        began = datetime.now(UTC)
        ended = self.api.flow_runs(
            {
                "state": {"type": {"any_": ["CRASHED", "FAILED"]}},
                "end_time": {"after_": self._since(began).isoformat()},
            }
        )
        series: dict[str, list[Json]] = {}
        for run in ended:
            if not self._is_news(run):
                continue
            if not run.get("deployment_id") or self._deployment(run) == RETRAIN:
                self._tell(run)
            else:
                series.setdefault(series_of(run), []).append(run)
        for runs in series.values():
            for streak in streaks(self.api, runs):
                self._tell_streak(streak)
        self._looked, self._seen = began, {_attempt(run) for run in ended}
        # A watchdog that is started again need not go through a week's failures.
        self.alerts.look_from(began - OVERLAP)

    def _since(self, now: datetime) -> datetime:
        since = max(self.alerts.since, now - LOOK_BACK)
        if self._looked is not None:
            since = max(since, self._looked - OVERLAP)
        # A clock that was ahead has noted moments that are still to come.
        return since if since <= now else now - OVERLAP

    def _is_news(self, run: Json) -> bool:
        if _attempt(run) in self._seen or run.get("parent_task_run_id"):
            # A flow inside another: the outer one is told of.
            return False
        if run["state"]["type"] == "FAILED" and not run.get("deployment_id"):
            # A command on a terminal: whoever gave it has read why it failed.
            return False
        if not run.get("start_time") and self._deployment(run) != RETRAIN:
            # It never began, and its schedule brings the next one soon.
            return False
        return not self.alerts.is_told(run["state"]["type"].lower(), _attempt(run))

    def _tell(self, run: Json) -> None:
        alert = self._alert(run)
        # Before the alert: killed in between, Prefect knows the repetition by its key.
        if run["state"]["type"] == "CRASHED" and self._deployment(run) == RETRAIN:
            alert = replace(alert, text=f"{alert.text} {self._repeat(run)}")
        self.alerts.tell(alert)

    def _tell_streak(self, streak: Streak) -> None:
        if self.alerts.is_told("failed", streak.subject):
            return
        alert = self._alert(streak.first)
        text = f"{alert.text} What fails like it is not told before a run of it succeeds."
        self.alerts.tell(replace(alert, subject=streak.subject, text=text, goes_on=True))

    def _alert(self, run: Json) -> Alert:
        try:
            return self._described(run)
        except LoralineError:
            raise
        except Exception:
            # It is told all the same, and hides no other.
            _log.exception("What flow run %s is about is not understood", run["id"])
            kind, name = run["state"]["type"].lower(), str(run["name"])
            details = {"flow_run": run["id"], "run_name": name}
            return Alert(kind, _attempt(run), name, f"The run {name} {kind}", details)

    def _described(self, run: Json) -> Alert:
        kind = run["state"]["type"].lower()
        recipe = recipe_of_run(self.api, run)
        message = str(run["state"].get("message") or "")[:1000]
        return Alert(
            kind,
            _attempt(run),
            self._name(run, recipe),
            f"The run {run['name']} {kind}" + (f" ({recipe})" if recipe else "") + f": {message}",
            {"flow_run": run["id"], "run_name": run["name"], "ended": run.get("end_time")},
        )

    def _name(self, run: Json, recipe: str | None) -> str:
        """The adapter's, as `flows.run_alerts` names it; where it is about none, the deployment's."""
        given, creator = run["parameters"], run.get("created_by") or {}
        deployment = self._deployment(run)
        if named := given.get("name") or given.get("model"):
            return str(named)
        if not recipe and deployment != RETRAIN:
            return deployment or str(run["name"])
        slug = creator.get("display_value") if creator.get("type") == "SCHEDULE" else None
        path = str(self.project / expanded(recipe)) if recipe else ""
        overrides = given.get("overrides") or ()
        return heading_of(path, overrides, otherwise=str(slug or ""))[0] or RETRAIN

    def _deployment(self, run: Json) -> str:
        """Its name; empty for a run of a command, and for a deployment that was deleted since."""
        if not (identity := run.get("deployment_id")):
            return ""
        if identity not in self._names:
            try:
                found = str(self.api.ask("GET", f"/deployments/{identity}")["name"])
            except StageFailed as error:
                if "status 404" not in str(error):
                    raise
                found = ""
            self._names[identity] = found
        return self._names[identity]

    def _repeat(self, run: Json) -> str:
        """Start it once more, unless a crash was answered so before; what was done, for the alert."""
        tags: list[str] = run.get("tags", [])
        spent = AGAIN in tags and AFTER_STOP not in tags
        stopped = self.cut_off(run)
        if spent and not stopped:
            return "It was started again after a crash already, and is not started once more."
        others = [tag for tag in tags if tag not in (AGAIN, AFTER_STOP)]
        marks = [AGAIN, AFTER_STOP] if stopped and not spent else [AGAIN]
        recipe = recipe_of_run(self.api, run)
        try:
            created = self.api.ask(
                "POST",
                f"/deployments/{run['deployment_id']}/create_flow_run",
                {
                    "parameters": {**run["parameters"], **({"recipe": recipe} if recipe else {})},
                    "tags": [*others, *marks],
                    "idempotency_key": repetition_key(run["id"], run.get("run_count")),
                    "state": {
                        "type": "SCHEDULED",
                        "message": f"Goes on where {run['name']} crashed",
                    },
                },
            )
        except StageFailed as error:
            if "with status 4" not in str(error):
                raise
            # It will not be taken later either, and what else happened must be told.
            return f"It could not be started again: {error}"
        how = "was cut off by a stop of the stack" if stopped else "crashed"
        _log.warning("Flow run %s %s; %s goes on", run["id"], how, created["id"])
        told = "It was started again, and goes on from its last complete checkpoint."
        return f"The stack was stopped while it ran. {told}" if stopped else told


def _attempt(run: Json) -> str:
    return attempt_of(run["id"], run.get("run_count"))
