"""Have Prefect forget the runs that looked and found nothing: one a minute would fill its database."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from flows.stack.api import PAGE, Json, PrefectApi, utc
from flows.stack.streaks import newest_success, series_of
from flows.stack.successes import NOTHING_DUE, Successes

NOTHING_FOUND = {
    "reconcile-registry": (("Completed",), "nothing moved"),
    "watch-data": ((NOTHING_DUE, "Skipped"), ""),
}
"""Deployment -> names of the state of a run that nobody will look up, and what stands in its message."""
KEPT = timedelta(days=1)
LOOK_SECONDS = 600.0
"""Between two looks. Each takes one page: that is 28,800 runs a day, and an idle stack makes 1,440 and 96 for
each watched recipe."""


@dataclass
class OldRuns:
    """Deletes such runs a day after they were due; those that found something stay as long as all others."""

    api: PrefectApi
    _since: str | None = field(default=None, init=False)
    """Where the last look ended: what it left is not looked at again."""

    def __call__(self) -> int:
        """One look; how many went. Raises: StageFailed when Prefect does not answer."""
        names = self._deployments()
        if not names:
            return 0
        due: Json = {"before_": (datetime.now(UTC) - KEPT).isoformat()}
        if self._since is not None:
            due["after_"] = self._since
        page = self.api.ask(
            "POST",
            "/flow_runs/filter",
            {
                "flow_runs": {
                    "deployment_id": {"any_": list(names)},
                    "state": {"type": {"any_": ["COMPLETED", "CANCELLED"]}},
                    "expected_start_time": due,
                },
                "sort": "EXPECTED_START_TIME_ASC",
                "limit": PAGE,
            },
        )
        empty = [run for run in page if _found_nothing(run, names[run["deployment_id"]])]
        newest = self._newest(empty)
        gone = self.api.delete_flow_runs([run["id"] for run in empty if run["id"] not in newest])
        if page:
            # Runs may be due in the same moment: those of this one are looked at once more.
            last = utc(page[-1]["expected_start_time"])
            all_of_one = last == utc(page[0]["expected_start_time"])
            step = timedelta(microseconds=1) if all_of_one and not gone else timedelta(0)
            self._since = (last + step).isoformat()
        return gone

    def _newest(self, runs: list[Json]) -> set[str]:
        """Successes after which nothing of the same series succeeded: by them its failures are one streak.

        And looks after which none of the same schedule found its data at rest: by them a long wait for a
        training is told from a long rest.
        """
        series = {series_of(run): run for run in runs if run["state"]["type"] == "COMPLETED"}
        found = [newest_success(self.api, run) for run in series.values()]
        schedules = {
            (run["deployment_id"], run["created_by"]["id"])
            for run in runs
            if run["state"]["name"] == NOTHING_DUE and (run.get("created_by") or {}).get("id")
        }
        found += [Successes(self.api).quiet_look(*schedule) for schedule in schedules]
        return {run["id"] for run in found if run is not None}

    def _deployments(self) -> dict[str, str]:
        wanted = {"deployments": {"name": {"any_": list(NOTHING_FOUND)}}}
        found = self.api.ask("POST", "/deployments/filter", wanted)
        return {it["id"]: it["name"] for it in found if it["name"] in NOTHING_FOUND}


def _found_nothing(run: Json, deployment: str) -> bool:
    state = run.get("state") or {}
    if state.get("type") == "CANCELLED":
        # By the limit of one at a time, before it began. Prefect gives those a start time, too.
        return run.get("run_count") == 0
    names, told = NOTHING_FOUND[deployment]
    return state.get("name") in names and told in str(state.get("message") or "")
