"""Which failed runs belong together: those of one schedule, or of one call, between two that succeeded."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flows.stack.api import PAGE, Json, PrefectApi, utc

MANY = 10
"""So many streaks of one series are looked for at once, the newest: older ones were told by then."""


@dataclass(frozen=True)
class Streak:
    """Failures with no success between them."""

    subject: str
    """The same as long as it lasts, however much of it is seen."""
    first: Json
    """The oldest run of it that was given."""


def series_of(run: Json) -> str:
    """What a run is one of: its schedule's runs, or those of its deployment with the same parameters."""
    creator = run.get("created_by") or {}
    if creator.get("type") == "SCHEDULE" and creator.get("id"):
        return f"{run['deployment_id']} {creator['id']}"
    return f"{run['deployment_id']} {json.dumps(run['parameters'], sort_keys=True)}"


def streaks(api: PrefectApi, runs: Sequence[Json]) -> Iterator[Streak]:
    """The streaks of these failed runs of one series, newest first; one question to Prefect for each.

    Raises: StageFailed when Prefect does not answer.
    """
    left = sorted(runs, key=lambda run: utc(run["end_time"]))
    for _ in range(MANY):
        if not left:
            return
        success = newest_success(api, left[-1], before=left[-1]["end_time"])
        after = utc(success["end_time"]) if success else None
        earlier = [run for run in left if after is not None and utc(run["end_time"]) < after]
        since = success["id"] if success else "the beginning"
        yield Streak(f"{series_of(left[-1])} since {since}", left[len(earlier)])
        left = earlier


def newest_success(api: PrefectApi, run: Json, *, before: str | None = None) -> Json | None:
    """The newest run of the same series that succeeded, by a moment. Raises: as `streaks`."""
    series, creator = series_of(run), run.get("created_by") or {}
    where: Json = {
        "deployment_id": {"any_": [run["deployment_id"]]},
        # What gave way to a later one has shown nothing.
        "state": {"type": {"any_": ["COMPLETED"]}, "name": {"not_any_": ["Skipped"]}},
    }
    if before is not None:
        where["end_time"] = {"before_": before}
    if creator.get("type") == "SCHEDULE" and creator.get("id"):
        where["created_by"] = {"id_": [creator["id"]]}
    found = api.ask(
        "POST",
        "/flow_runs/filter",
        {
            "flow_runs": where,
            "sort": "END_TIME_DESC",
            "limit": 1 if "created_by" in where else PAGE,
        },
    )
    return next((it for it in found if series_of(it) == series), None)
