"""Runs that Prefect planned by a clock that was ahead do not keep a schedule from being due."""

from datetime import UTC, datetime, timedelta

from flows.stack.api import Json, PrefectApi
from flows.stack.misplanned import PATIENCE_SECONDS, Misplanned


def deployment(api: PrefectApi, name: str) -> str:
    """With two nightly schedules, of which nothing is planned yet."""
    flow = api.ask("POST", "/flows/", {"name": name})["id"]
    nightly = {"cron": "0 2 * * *", "timezone": "Europe/Berlin"}
    schedules = [{"schedule": nightly, "slug": slug, "active": True} for slug in ("one", "two")]
    body = {"name": name, "flow_id": flow, "entrypoint": "a.b", "schedules": schedules}
    return str(api.ask("POST", "/deployments/", body)["id"])


def plan(api: PrefectApi, deployed: str, after: timedelta) -> None:
    """As Prefect does where the clock is ahead by so much."""
    start = datetime.now(UTC) + after
    body = {
        "start_time": start.isoformat(),
        "end_time": (start + timedelta(days=100)).isoformat(),
        "min_time": timedelta(days=30).total_seconds(),
        "min_runs": 3,
        "max_runs": 60,
    }
    api.ask("POST", f"/deployments/{deployed}/schedule", body)


def planned(api: PrefectApi, deployed: str) -> list[Json]:
    return api.flow_runs({"deployment_id": {"any_": [deployed]}})


def test_runs_that_were_planned_by_a_clock_that_was_ahead_are_planned_anew(api: PrefectApi) -> None:
    deployed = deployment(api, "ahead")
    plan(api, deployed, timedelta(0))
    far = len(planned(api, deployed))
    assert far >= 60
    # It is last year; Prefect's server thought that it is today.
    then, passed = datetime.now(UTC) - timedelta(days=365), [0.0]
    look = Misplanned(api, now=lambda: then, clock=lambda: passed[0])
    # Right after a start the clock may be behind.
    assert look() == 0
    assert len(planned(api, deployed)) == far
    passed[0] += PATIENCE_SECONDS
    assert look() >= far
    assert not planned(api, deployed)
    assert look() == 0


def test_what_was_planned_in_its_time_stays_whoever_else_was_deleted_or_ended(
    api: PrefectApi,
) -> None:
    deployed = deployment(api, "in-time")
    plan(api, deployed, timedelta(days=30))
    runs = planned(api, deployed)
    for run in runs[:10]:
        api.end_flow_run(run["id"], "CANCELLED", "not this week")
    for run in runs[10:20]:
        api.ask("DELETE", f"/flow_runs/{run['id']}")
    left = len(planned(api, deployed))
    passed = [0.0]
    look = Misplanned(api, clock=lambda: passed[0])
    look()
    passed[0] += PATIENCE_SECONDS
    assert look() == 0
    assert len(planned(api, deployed)) == left == len(runs) - 10


def test_what_a_run_did_stays_and_what_was_late_or_had_nothing_to_do_does_not(
    api: PrefectApi,
) -> None:
    deployed = deployment(api, "began")
    plan(api, deployed, timedelta(0))
    runs = dict(
        zip(("RUNNING", "COMPLETED", "Late", "Skipped"), planned(api, deployed), strict=False)
    )
    kinds = {"Late": "SCHEDULED", "Skipped": "COMPLETED"}
    for name, run in runs.items():
        state = {
            "type": kinds.get(name, name),
            "name": name if name in kinds else name.capitalize(),
        }
        api.ask("POST", f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
    then, passed = datetime.now(UTC) - timedelta(days=365), [0.0]
    look = Misplanned(api, now=lambda: then, clock=lambda: passed[0])
    look()
    passed[0] += PATIENCE_SECONDS
    look()
    left = {run["id"] for run in planned(api, deployed)}
    assert left == {runs[name]["id"] for name in ("RUNNING", "COMPLETED")}
    # Their moments are free.
    plan(api, deployed, timedelta(0))
    again = {run["expected_start_time"] for run in planned(api, deployed)}
    assert {run["expected_start_time"] for run in runs.values()} <= again
