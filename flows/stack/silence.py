"""Notice that a schedule brings nothing: no success of its recipe for two periods."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim

from flows.stack.alerts import Alert, Alerts
from flows.stack.api import Json, PrefectApi, utc
from flows.stack.crashes import RETRAIN
from flows.stack.recipes import recipe_of_schedule
from flows.stack.successes import Successes
from tasks.errors import LoralineError
from tasks.home import Home, home
from tasks.recipe_file import read_document
from tasks.retention.ledger import newest_success

WATCH = "watch-data"
"""The deployment that looks at data; its schedules have the adapters' names, as those of the retraining."""
PERIODS = 2
MARGIN = timedelta(minutes=10)
"""What a run may start late."""
_log = logging.getLogger(__name__)
Times = Callable[[datetime], Iterator[datetime]]


@dataclass
class Silence:
    """Looks at every active schedule of the retraining, and at recipes that only their data starts."""

    api: PrefectApi
    alerts: Alerts
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    """A stack that was off for a week first gets the time to catch up."""
    state: Home = field(default_factory=home)
    _answered: bool | None = field(default=None, init=False)
    """Whether Prefect has ever answered, None before the first question."""
    _successes: Successes = field(init=False)
    _unread: set[str] = field(default_factory=set, init=False)
    """Schedules that are not understood, and were named in the log."""

    def __post_init__(self) -> None:
        """Begin with nothing known."""
        self._successes = Successes(self.api)

    def __call__(self) -> None:
        """One look. Raises: StageFailed when Prefect does not answer."""
        # It started by a clock that was ahead.
        self.started = min(self.started, datetime.now(UTC))
        where = {"deployments": {"name": {"any_": [RETRAIN, WATCH]}}}
        found = self._ask("/deployments/filter", where)
        if trains := [it["id"] for it in found if it["name"] == RETRAIN]:
            self._successes.read(trains)
        clocked = set()
        for _, schedule in _active(found, RETRAIN):
            clocked.add(schedule.get("slug"))
            times = partial(fire_times, schedule["schedule"])
            self._watched(schedule, partial(self._look, schedule, "clock", times))
        for deployment, schedule in _active(found, WATCH):
            if schedule.get("slug") not in clocked:
                self._watched(schedule, partial(self._look_at_data, deployment["id"], schedule))

    def _ask(self, path: str, where: Json) -> list[Json]:
        """As the API; what is begun while Prefect is away begins with its first answer: nothing could run before."""
        try:
            found: list[Json] = self.api.ask("POST", path, where)
        except LoralineError:
            self._answered = bool(self._answered)
            raise
        if self._answered is False:
            self.started = datetime.now(UTC)
        self._answered = True
        return found

    def _watched(self, schedule: Json, look: Callable[[], None]) -> None:
        """Look at one schedule; one that nobody understands hides no other."""
        try:
            look()
        except LoralineError:
            raise
        except Exception as error:
            if schedule["id"] not in self._unread:
                self._unread.add(schedule["id"])
                _log.warning(
                    "Nobody is told if the schedule %s brings nothing: when it is due, %r, is not "
                    "understood (%s: %s). Give it the five fields of cron, such as 0 2 * * *",
                    schedule.get("slug") or schedule["id"],
                    schedule["schedule"],
                    type(error).__name__,
                    error,
                )

    def _look_at_data(self, deployment: str, schedule: Json) -> None:
        if (days := self._longest_wait(schedule)) is not None:
            look = self._successes.quiet_look(deployment, schedule["id"])
            quiet = utc(look["end_time"]) if look else None
            self._look(schedule, "data", partial(_every, days), quiet)

    def _look(
        self,
        schedule: Json,
        kind: Literal["clock", "data"],
        times: Times,
        quiet: datetime | None = None,
    ) -> None:
        name = str(schedule.get("slug") or schedule["id"])
        run = self._successes.of(recipe_of_schedule(self.api, schedule))
        # Prefect forgets runs after a while, and does not know those of a terminal.
        known = (utc(run["end_time"]) if run else None, newest_success(self.state, name))
        success = max(filter(None, known), default=None)
        # A schedule that was changed or resumed begins anew, and so does one whose data was at rest.
        changed = utc(schedule.get("updated") or schedule["created"])
        if changed > datetime.now(UTC):
            # By a clock that was ahead.
            changed = self.started
        since = max(filter(None, (changed, success, quiet)))
        due = list(islice(times(since), PERIODS))
        if len(due) < PERIODS or datetime.now(UTC) < max(due[-1], self.started) + _lag(
            run, due[1] - due[0]
        ):
            return
        when = f"since {success:%Y-%m-%d %H:%M} UTC" if success else "at all"
        passed = {
            "clock": f"{PERIODS} periods of its schedule have passed",
            "data": f"{PERIODS} times its `after_days` have passed, and no look at its data found nothing due",
        }
        self.alerts.tell(
            Alert(
                "no-success",
                f"{schedule['id']} {since.isoformat()}",
                name,
                f"No retraining of {name} succeeded {when}: {passed[kind]}. "
                "Look at its last runs in Prefect, and at `loraline status`.",
                {"schedule": schedule["id"], "last_success": success and success.isoformat()},
            )
        )

    def _longest_wait(self, schedule: Json) -> float | None:
        """After how many days changed data is trained on, whatever it is; None where only a number of rows decides."""
        days = (schedule.get("parameters") or {}).get("after_days")
        recipe = recipe_of_schedule(self.api, schedule)
        if days is None and recipe is not None:
            try:
                days = read_document(Path(recipe)).get(("schedule", "after_days"))
            except LoralineError:
                # Its looks fail, and are told of.
                return None
        return float(days) if isinstance(days, int | float) and days > 0 else None


def _active(deployments: list[Json], name: str) -> Iterator[tuple[Json, Json]]:
    """The deployment's schedules that nobody has paused."""
    for deployment in deployments:
        if deployment["name"] == name and not deployment.get("paused"):
            for schedule in deployment.get("schedules", []):
                if schedule.get("active"):
                    yield deployment, schedule


def _every(days: float, since: datetime) -> Iterator[datetime]:
    return (since + timedelta(days=days) * times for times in count(1))


def _lag(run: Json | None, period: timedelta) -> timedelta:
    """How long after its time a run may end: what the last one took, and half as much again.

    One that caught up after a long outage was not late for more than a period.
    """
    if run is None:
        return MARGIN
    ended = utc(run["end_time"])
    began = utc(run.get("start_time") or run.get("expected_start_time") or run["end_time"])
    late = began - utc(run.get("expected_start_time") or run["end_time"])
    took = ended - began + min(late, period)
    return MARGIN + max(took, timedelta(0)) * 1.5


def fire_times(schedule: Json, after: datetime) -> Iterator[datetime]:
    """When the schedule is due after a moment, without end. Raises: as cronsim for what it refuses; ValueError for a kind that is not known here."""
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
    else:
        raise ValueError("neither `cron` nor `interval`")
