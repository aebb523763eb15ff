"""The last success of each recipe, as Prefect tells it: read once, then only what is new."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from flows.stack.api import Json, PrefectApi, utc
from flows.stack.recipes import recipe_of_run
from tasks.artifacts import NOTHING_NEW

NOTHING_DUE = "Nothing due"
"""Name of the state in which a look of `watch-data` ends that finds no training due, and none awaited."""
OVERLAP = timedelta(hours=1)
"""A run that ended while the server was away gets its end afterwards, with the time at which it ended."""


@dataclass
class Successes:
    """Of the runs of some deployments. The number of runs that Prefect keeps does not matter."""

    api: PrefectApi
    _last: dict[str, Json] = field(default_factory=dict)
    """Recipe -> its newest success."""
    _read_to: datetime | None = None

    def read(self, deployments: list[str]) -> None:
        """Take in what has ended since the last time. Raises: StageFailed when Prefect does not answer."""
        where: Json = {
            "state": {"type": {"any_": ["COMPLETED"]}},
            "deployment_id": {"any_": deployments},
            "end_time": _by_now(),
        }
        now = datetime.now(UTC)
        self._last = {it: run for it, run in self._last.items() if utc(run["end_time"]) <= now}
        if self._read_to is not None:
            # Later than now where the clock was ahead at the last look.
            where["end_time"]["after_"] = (min(self._read_to, now) - OVERLAP).isoformat()
        read_to = self._read_to
        recipes: dict[str, str | None] = {}
        for run in self.api.each_flow_run(where):
            if not run.get("end_time"):
                continue
            ended = utc(run["end_time"])
            if is_success(run) and (recipe := recipe_of_run(self.api, run, recipes)):
                before = self._last.get(recipe)
                if before is None or utc(before["end_time"]) <= ended:
                    self._last[recipe] = run
            read_to = max(read_to or ended, ended)
        # Only now: they come as they began, and one that is still to come may have ended before.
        self._read_to = read_to

    def of(self, recipe: str | None) -> Json | None:
        """The newest run of the recipe that ended well, or found that there was nothing to do."""
        return self._last.get(recipe) if recipe else None

    def quiet_look(self, deployment: str, schedule: str) -> Json | None:
        """The newest look at the data in which nothing was due. Raises: as `read`."""
        found = self.api.ask(
            "POST",
            "/flow_runs/filter",
            {
                "flow_runs": {
                    "deployment_id": {"any_": [deployment]},
                    "created_by": {"id_": [schedule]},
                    "state": {"name": {"any_": [NOTHING_DUE]}},
                    "end_time": _by_now(),
                },
                "sort": "END_TIME_DESC",
                "limit": 1,
            },
        )
        return found[0] if found else None


def _by_now() -> Json:
    """Where a clock was ahead, runs have ended in what is still to come: they say nothing of today."""
    return {"before_": datetime.now(UTC).isoformat()}


def is_success(run: Json) -> bool:
    """A run that gave way to another, which may hang for ever, has achieved nothing itself.

    Nor has one in which somebody tried other settings than the recipe's.
    """
    state, by = run["state"], (run.get("created_by") or {}).get("type")
    if run["parameters"].get("overrides") and by != "SCHEDULE":
        return False
    return state["name"] != "Skipped" or str(state.get("message")).startswith(NOTHING_NEW)
