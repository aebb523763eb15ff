"""Notice that a schedule brings nothing: no success of its recipe for two periods."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim

from flows.stack.alerts import Alert, Alerts
from flows.stack.api import Json, PrefectApi, utc
from flows.stack.crashes import RETRAIN
from flows.stack.recipes import recipe_of_run, recipe_of_schedule
from tasks.artifacts import NOTHING_NEW

PERIODS = 2
MARGIN = timedelta(minutes=10)
"""What a run may start late."""


@dataclass
class Silence:
    """Looks at every active schedule of the retraining."""

    api: PrefectApi
    alerts: Alerts
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    """A stack that was off for a week first gets the time to catch up."""

    def __call__(self) -> None:
        """One look. Raises: StageFailed when Prefect does not answer."""
        found = self.api.ask(
            "POST", "/deployments/filter", {"deployments": {"name": {"any_": [RETRAIN]}}}
        )
        for deployment in found:
            if deployment.get("paused"):
                continue
            for schedule in deployment.get("schedules", []):
                if schedule.get("active"):
                    self._look(deployment, schedule, datetime.now(UTC))

    def _look(self, deployment: Json, schedule: Json, now: datetime) -> None:
        success = self._last_success(deployment, schedule)
        # A schedule that was changed or resumed begins anew.
        since = utc(schedule.get("updated") or schedule["created"])
        took = timedelta(0)
        if success:
            ended = utc(success["end_time"])
            took = ended - utc(success.get("expected_start_time") or success["end_time"])
            since = max(since, ended)
        times = list(islice(fire_times(schedule["schedule"], since), PERIODS))
        if len(times) < PERIODS:
            return
        lag = MARGIN + max(took, timedelta(0)) * 1.5
        if now < max(times[-1], self.started) + lag:
            return
        name = str(schedule.get("slug") or schedule["id"])
        when = f"since {utc(success['end_time']):%Y-%m-%d %H:%M} UTC" if success else "at all"
        self.alerts.tell(
            Alert(
                "no-success",
                f"{schedule['id']} {since.isoformat()}",
                name,
                f"No retraining of {name} succeeded {when}: {PERIODS} periods of its schedule have passed. "
                "Look at its last runs in Prefect, and at `loraline status`.",
                {"schedule": schedule["id"], "last_success": success and success["end_time"]},
            )
        )

    def _last_success(self, deployment: Json, schedule: Json) -> Json | None:
        recipe = recipe_of_schedule(self.api, schedule)
        found = self.api.ask(
            "POST",
            "/flow_runs/filter",
            {
                "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
                "deployments": {"id": {"any_": [deployment["id"]]}},
                "sort": "END_TIME_DESC",
                "limit": 200,
            },
        )
        return next(
            (
                run
                for run in found
                if _is_success(run["state"]) and recipe and recipe_of_run(self.api, run) == recipe
            ),
            None,
        )


def _is_success(state: Json) -> bool:
    """A run that gave way to another, which may hang for ever, has achieved nothing itself."""
    return state["name"] != "Skipped" or str(state.get("message")).startswith(NOTHING_NEW)


def fire_times(schedule: Json, after: datetime) -> Iterator[datetime]:
    """When the schedule is due after a moment, without end; nothing for a kind that is not known here."""
    zone = ZoneInfo(schedule.get("timezone") or "UTC")
    if cron := schedule.get("cron"):
        yield from CronSim(cron, after.astimezone(zone))
    elif seconds := schedule.get("interval"):
        step = timedelta(seconds=float(seconds))
        anchor = utc(schedule.get("anchor_date") or after.isoformat())
        due = anchor + step * ((after - anchor) // step + 1)
        while True:
            yield due
            due += step
