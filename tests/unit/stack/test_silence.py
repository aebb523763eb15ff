"""Silence: a schedule that brings nothing is told of once, and only such a one."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.stack.alerts import Alerts
from flows.stack.api import PrefectApi
from flows.stack.crashes import Crashes
from flows.stack.old_runs import OldRuns
from flows.stack.recipes import variable_of
from flows.stack.silence import Silence, fire_times
from flows.stack.successes import NOTHING_DUE
from tasks.artifacts import NOTHING_NEW, Outcome
from tasks.errors import ServerAway
from tasks.home import Home
from tasks.progress import announce
from tasks.retention.ledger import recorded


def a_schedule(minutes_ago: float, **schedule: Any) -> dict[str, Any]:
    created = (datetime.now(UTC) - timedelta(minutes=minutes_ago)).isoformat()
    return {
        "id": "s",
        "active": True,
        "created": created,
        "updated": created,
        "slug": "small",
        "parameters": {"recipe": "recipes/small.yaml"},
        "schedule": schedule,
    }


def test_two_periods_without_success_are_told_once(prefect: Any, alerts: Alerts) -> None:
    schedule = a_schedule(200, cron="0 * * * *", timezone="Europe/Berlin")
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [schedule]})
    # Success of another recipe is no comfort.
    prefect.add("COMPLETED", deployment_id="d", parameters={"recipe": "recipes/other.yaml"})
    look = Silence(prefect.api, alerts, started=datetime.now(UTC) - timedelta(days=2))
    look()
    look()
    alerts.deliver()
    assert [e["payload"]["name"] for e in prefect.events] == ["small"]
    assert "2 periods" in prefect.events[0]["payload"]["text"]


def test_a_watchdog_that_began_before_prefect_gives_its_runs_the_time_to_catch_up(
    prefect: Any, alerts: Alerts
) -> None:
    schedule = a_schedule(200, cron="0 * * * *", timezone="UTC")
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [schedule]})
    before = datetime.now(UTC) - timedelta(days=2)
    look = Silence(PrefectApi("http://127.0.0.1:9/api"), alerts, started=before)
    for _ in range(2):
        with pytest.raises(ServerAway):
            look()
    # Prefect is there after two days.
    look.api = look._successes.api = prefect.api
    look()
    alerts.deliver()
    assert not prefect.events
    # One that only was away for a moment begins nothing anew.
    look.started = before
    look.api = PrefectApi("http://127.0.0.1:9/api")
    with pytest.raises(ServerAway):
        look()
    look.api = prefect.api
    look()
    alerts.deliver()
    assert [e["payload"]["name"] for e in prefect.events] == ["small"]


def test_a_schedule_that_was_paused_once_is_still_told_apart_from_others(
    prefect: Any, alerts: Alerts
) -> None:
    # Prefect empties the parameters of a schedule that somebody pauses and resumes.
    prefect.variables[variable_of("small")] = {"schedule": "small", "recipe": "recipes/small.yaml"}
    schedule = a_schedule(200, cron="0 * * * *", timezone="UTC") | {"parameters": {}}
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [schedule]})
    by = {"type": "SCHEDULE", "display_value": "other"}
    other = prefect.add("COMPLETED", deployment_id="d", created_by=by)
    look = Silence(prefect.api, alerts, started=datetime.now(UTC) - timedelta(days=2))
    look()
    alerts.deliver()
    assert [e["payload"]["name"] for e in prefect.events] == ["small"]
    # Its own runs count, and what is repeated after a crash knows its recipe.
    crashed = prefect.add("CRASHED", deployment_id="d")
    for run in (other, crashed):
        run["created_by"] = {"type": "SCHEDULE", "display_value": "small"}
    Crashes(prefect.api, alerts)()
    (created,) = prefect.created.values()
    assert created["parameters"] == {"recipe": "recipes/small.yaml"}
    prefect.events.clear()
    schedule["updated"] = (datetime.now(UTC) - timedelta(minutes=199)).isoformat()
    look()
    alerts.deliver()
    assert [e["payload"]["kind"] for e in prefect.events] == ["crashed"]


@pytest.mark.parametrize("comfort", ["success", "paused", "young stack", "inactive", "resumed"])
def test_there_is_no_alarm_without_a_reason(prefect: Any, alerts: Alerts, comfort: str) -> None:
    schedule = a_schedule(5 if comfort == "resumed" else 200, cron="0 * * * *", timezone="UTC")
    schedule["active"] = comfort != "inactive"
    prefect.deployments.append(
        {"id": "d", "name": "retrain", "paused": comfort == "paused", "schedules": [schedule]}
    )
    if comfort == "success":
        given = {"recipe": "recipes/small.yaml", "force": False}
        prefect.add("COMPLETED", deployment_id="d", parameters=given)
    started = datetime.now(UTC) - timedelta(days=0 if comfort == "young stack" else 2)
    Silence(prefect.api, alerts, started=started)()
    alerts.deliver()
    assert not prefect.events


def test_a_run_that_gave_way_to_one_that_hangs_is_no_success(prefect: Any, alerts: Alerts) -> None:
    schedule = a_schedule(200, cron="0 * * * *", timezone="UTC")
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [schedule]})
    mine = {"parameters": {"recipe": "recipes/small.yaml"}}
    skipped = prefect.add("COMPLETED", deployment_id="d", **mine)
    skipped["state"] |= {"name": "Skipped", "message": "small is being trained by small · nightly"}
    look = Silence(prefect.api, alerts, started=datetime.now(UTC) - timedelta(days=2))
    look()
    alerts.deliver()
    assert [e["payload"]["kind"] for e in prefect.events] == ["no-success"]


def test_a_run_that_found_nothing_new_is_a_success(prefect: Any, alerts: Alerts) -> None:
    schedule = a_schedule(200, cron="0 * * * *", timezone="UTC")
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [schedule]})
    skipped = prefect.add(
        "COMPLETED", deployment_id="d", parameters={"recipe": "recipes/small.yaml"}
    )
    skipped["state"] |= {
        "name": "Skipped",
        "message": f"{NOTHING_NEW} since version 7 of small was registered.",
    }
    Silence(prefect.api, alerts, started=datetime.now(UTC) - timedelta(days=2))()
    alerts.deliver()
    assert not prefect.events


def succeeded(prefect: Any, recipe: str, days_ago: float, late: float = 0) -> dict[str, Any]:
    at = (datetime.now(UTC) - timedelta(days=days_ago)).isoformat()
    due = (datetime.now(UTC) - timedelta(days=days_ago + late)).isoformat()
    run: dict[str, Any] = prefect.add(
        "COMPLETED",
        deployment_id="d",
        parameters={"recipe": recipe},
        end_time=at,
        start_time=at,
        expected_start_time=due,
    )
    return run


def long_since(days: float = 100) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def test_a_monthly_success_is_known_however_many_runs_others_have_had_since(
    prefect: Any, alerts: Alerts
) -> None:
    schedule = a_schedule(200 * 1440, cron="0 2 1 * *", timezone="UTC")
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [schedule]})
    succeeded(prefect, "recipes/small.yaml", 21)
    for night in range(25):
        for other in range(10):
            succeeded(prefect, f"recipes/nightly-{other}.yaml", night + other / 100)
    look = Silence(prefect.api, alerts, started=long_since())
    look()
    # Another look reads only what is new.
    prefect.runs.clear()
    look()
    alerts.deliver()
    assert not prefect.events


def test_what_prefect_forgot_of_a_schedule_is_asked_once_for_all_its_runs(
    prefect: Any, alerts: Alerts
) -> None:
    """A pause takes the recipe from a schedule and its runs: three months of them are thousands of questions."""
    schedule = a_schedule(30 * 1440, cron="0 2 * * *", timezone="UTC") | {"parameters": {}}
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [schedule]})
    variable = variable_of("small")
    prefect.variables[variable] = {"recipe": "recipes/small.yaml"}
    for night in range(250):
        run = succeeded(prefect, "", 0.9 + night / 10)
        run["created_by"] = {"type": "SCHEDULE", "display_value": "small"}
    Silence(prefect.api, alerts, started=long_since())()
    alerts.deliver()
    assert not prefect.events
    # By the runs, and by the schedule itself.
    assert len([path for path in prefect.asked if variable in path]) == 2


def test_a_second_silence_is_told_as_the_first_was(prefect: Any, alerts: Alerts) -> None:
    schedule = a_schedule(30 * 1440, cron="0 2 * * *", timezone="UTC")
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [schedule]})
    look = Silence(prefect.api, alerts, started=long_since())
    look()
    succeeded(prefect, "recipes/small.yaml", 7)
    for other in range(250):
        succeeded(prefect, f"recipes/other-{other}.yaml", 1)
    look()
    look()
    alerts.deliver()
    told = [event["payload"]["text"] for event in prefect.events]
    assert len(told) == 2
    assert "succeeded at all" in told[0]
    assert f"succeeded since {long_since(7):%Y-%m-%d}" in told[1]


@pytest.mark.parametrize(
    "clock",
    [
        {"cron": "@daily", "timezone": "UTC"},
        {"cron": "0 2 ? * 1", "timezone": "UTC"},
        {"cron": "0 2 * * *", "timezone": "Europe/Atlantis"},
        {"rrule": "FREQ=DAILY"},
    ],
)
def test_one_schedule_that_nobody_understands_hides_no_other(
    prefect: Any, alerts: Alerts, caplog: pytest.LogCaptureFixture, clock: dict[str, str]
) -> None:
    byhand = a_schedule(30 * 1440, **clock) | {"id": "h", "slug": "by-hand"}
    ours = a_schedule(30 * 1440, cron="0 2 * * *", timezone="UTC")
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [byhand, ours]})
    look = Silence(prefect.api, alerts, started=long_since())
    look()
    look()
    alerts.deliver()
    assert [e["payload"]["name"] for e in prefect.events] == ["small"]
    (warned,) = [r.getMessage() for r in caplog.records if "by-hand" in r.getMessage()]
    assert next(iter(clock.values())) in warned


@pytest.mark.parametrize("days", ["0x_", "!!float x", "1" + "0" * 400])
def test_one_recipe_that_nobody_understands_hides_no_other(
    prefect: Any, alerts: Alerts, tmp_path: Path, days: str
) -> None:
    watched_by_data(prefect, tmp_path, f"{{after_days: {days}}}")
    (odd,) = prefect.deployments[-1]["schedules"]
    odd |= {"id": "o", "slug": "odd"}
    (tmp_path / "other").mkdir()
    good = watched_by_data(prefect, tmp_path / "other", "{after_days: 7}")
    prefect.deployments[-1]["schedules"] = [odd, good]
    Silence(prefect.api, alerts, started=long_since())()
    alerts.deliver()
    assert [e["payload"]["name"] for e in prefect.events] == ["small"]


def trained_on_a_terminal(state: Home, **run: Any) -> None:
    with recorded(state, "small", 5, **run):
        announce("outcome", outcome=Outcome(outcome="registered", reason="").model_dump())


def test_a_success_on_a_terminal_is_one(prefect: Any, state: Home, alerts: Alerts) -> None:
    schedule = a_schedule(200, cron="0 * * * *", timezone="UTC")
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [schedule]})
    trained_on_a_terminal(state)
    Silence(prefect.api, alerts, started=long_since(), state=state)()
    alerts.deliver()
    assert not prefect.events


def test_what_somebody_tried_with_other_settings_is_no_success(
    prefect: Any, state: Home, alerts: Alerts
) -> None:
    schedule = a_schedule(200, cron="0 * * * *", timezone="UTC")
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [schedule]})
    given = {"recipe": "recipes/small.yaml", "overrides": ["seed=5"]}
    prefect.add("COMPLETED", deployment_id="d", parameters=given)
    trained_on_a_terminal(state, as_written=False)
    look = Silence(prefect.api, alerts, started=long_since(), state=state)
    look()
    alerts.deliver()
    assert [e["payload"]["kind"] for e in prefect.events] == ["no-success"]


def test_a_schedule_to_which_somebody_gave_other_settings_succeeds_with_them(
    prefect: Any, alerts: Alerts
) -> None:
    given = {"recipe": "recipes/small.yaml", "overrides": ["seed=5"]}
    schedule = a_schedule(200, cron="0 * * * *", timezone="UTC") | {"parameters": given}
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [schedule]})
    by = {"type": "SCHEDULE", "display_value": "small"}
    prefect.add("COMPLETED", deployment_id="d", parameters=given, created_by=by)
    Silence(prefect.api, alerts, started=long_since())()
    alerts.deliver()
    assert not prefect.events


def test_a_training_that_takes_longer_than_its_period_is_waited_for(
    prefect: Any, alerts: Alerts
) -> None:
    schedule = a_schedule(60 * 1440, cron="0 * * * *", timezone="UTC")
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [schedule]})
    ended = datetime.now(UTC) - timedelta(hours=4.5)
    began = (ended - timedelta(hours=3)).isoformat()
    prefect.add(
        "COMPLETED",
        deployment_id="d",
        parameters={"recipe": "recipes/small.yaml"},
        end_time=ended.isoformat(),
        start_time=began,
        expected_start_time=began,
    )
    Silence(prefect.api, alerts, started=long_since())()
    alerts.deliver()
    assert not prefect.events


def test_a_run_of_a_clock_that_was_ahead_hides_no_silence(
    prefect: Any, state: Home, alerts: Alerts
) -> None:
    schedule = a_schedule(200, cron="0 * * * *", timezone="UTC")
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [schedule]})
    trained_on_a_terminal(state)
    (path,) = state.runs.glob("*/*.json")
    then = (datetime.now(UTC) + timedelta(days=400)).isoformat()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started": then}))
    Silence(prefect.api, alerts, started=long_since(), state=state)()
    alerts.deliver()
    assert [e["payload"]["kind"] for e in prefect.events] == ["no-success"]


@pytest.mark.parametrize("ahead", ["run", "schedule", "look"])
def test_what_ended_or_changed_by_a_clock_that_was_ahead_hides_no_silence(
    prefect: Any, alerts: Alerts, tmp_path: Path, ahead: str
) -> None:
    next_year = (datetime.now(UTC) + timedelta(days=400)).isoformat()
    if ahead == "look":
        name, schedule = "watch-data", watched_by_data(prefect, tmp_path, "{after_days: 7}")
        by = {"type": "SCHEDULE", "id": schedule["id"]}
        looked = {"type": "COMPLETED", "name": "Nothing due", "message": ""}
        prefect.add("COMPLETED", deployment_id="d", created_by=by, end_time=next_year, state=looked)
    else:
        name, schedule = "retrain", a_schedule(200, cron="0 * * * *", timezone="UTC")
    if ahead == "schedule":
        schedule["updated"] = next_year
    if ahead == "run":
        given = {"recipe": "recipes/small.yaml"}
        prefect.add("COMPLETED", deployment_id="d", parameters=given, end_time=next_year)
    prefect.deployments[:] = [{"id": "d", "name": name, "schedules": [schedule]}]
    Silence(prefect.api, alerts, started=long_since())()
    alerts.deliver()
    assert [e["payload"]["kind"] for e in prefect.events] == ["no-success"]


def test_a_watchdog_that_lived_through_a_clock_that_was_ahead_sees_what_comes_after(
    prefect: Any, alerts: Alerts
) -> None:
    schedule = a_schedule(200, cron="0 * * * *", timezone="UTC")
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [schedule]})
    given = {"recipe": "recipes/small.yaml"}
    prefect.add("COMPLETED", deployment_id="d", parameters=given)
    look = Silence(prefect.api, alerts, started=datetime.now(UTC) + timedelta(days=30))
    look()
    # What it took in next month, by that clock.
    (run,) = prefect.runs.values()
    run["end_time"] = (datetime.now(UTC) + timedelta(days=30)).isoformat()
    look._successes._last["recipes/small.yaml"] = run
    look._successes._read_to = datetime.now(UTC) + timedelta(days=30)
    assert look.started <= datetime.now(UTC)
    look.started = long_since()
    look()
    alerts.deliver()
    assert [e["payload"]["kind"] for e in prefect.events] == ["no-success"]
    done = prefect.add("COMPLETED", deployment_id="d", parameters=given)
    look._successes.read(["d"])
    assert look._successes.of("recipes/small.yaml") == done


@pytest.mark.parametrize("late", [0, 14], ids=["in time", "after fourteen days"])
def test_a_run_that_caught_up_after_an_outage_delays_no_alert(
    prefect: Any, alerts: Alerts, late: float
) -> None:
    schedule = a_schedule(60 * 1440, cron="0 2 * * *", timezone="UTC")
    prefect.deployments.append({"id": "d", "name": "retrain", "schedules": [schedule]})
    succeeded(prefect, "recipes/small.yaml", 5, late=late)
    Silence(prefect.api, alerts, started=long_since())()
    alerts.deliver()
    assert [e["payload"]["kind"] for e in prefect.events] == ["no-success"]


def watched_by_data(prefect: Any, folder: Path, schedule: str) -> dict[str, Any]:
    """A recipe that only its data starts, whose schedule of `watch-data` is 30 days old."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "small.yaml"
    recipe.write_text(f"name: small\nschedule: {schedule}\n")
    looks = a_schedule(30 * 1440, interval=900.0) | {"parameters": {"recipe": str(recipe)}}
    prefect.deployments += [
        {"id": "d", "name": "retrain", "schedules": []},
        {"id": "w", "name": "watch-data", "schedules": [looks]},
    ]
    return looks


def test_a_training_that_data_asks_for_in_vain_is_told_of_after_twice_its_days(
    prefect: Any, alerts: Alerts, tmp_path: Path
) -> None:
    looks = watched_by_data(prefect, tmp_path, "{after_days: 2}")
    succeeded(prefect, looks["parameters"]["recipe"], 10)
    look = Silence(prefect.api, alerts, started=long_since())

    # Its data was at rest until yesterday: nothing is late.
    looked(prefect, NOTHING_DUE, 1)
    look()
    alerts.deliver()
    assert not prefect.events
    for run in prefect.runs.values():
        if run["state"]["name"] == NOTHING_DUE:
            run["end_time"] = long_since(5).isoformat()
    look()
    look()
    alerts.deliver()
    assert [e["payload"]["kind"] for e in prefect.events] == ["no-success"]
    assert "no look at its data found nothing due" in prefect.events[0]["payload"]["text"]


def test_a_long_rest_is_still_known_when_its_looks_are_forgotten(
    prefect: Any, alerts: Alerts, tmp_path: Path
) -> None:
    looks = watched_by_data(prefect, tmp_path, "{after_days: 7}")
    succeeded(prefect, looks["parameters"]["recipe"], 28)
    for days_ago in (3.0, 2.5, 2.4):
        looked(prefect, NOTHING_DUE, days_ago)
    # Then came data, and its training takes two days.
    for days_ago in (2.3, 1.5, 0.5):
        looked(prefect, "Completed", days_ago)
    assert OldRuns(prefect.api)() == 2
    Silence(prefect.api, alerts, started=long_since())()
    alerts.deliver()
    assert not prefect.events


def looked(prefect: Any, name: str, days_ago: float) -> None:
    """A look at the recipe's data that ended so."""
    then = long_since(days_ago).isoformat()
    prefect.add(
        "COMPLETED",
        deployment_id="w",
        created_by={"id": "s", "type": "SCHEDULE", "display_value": "small"},
        state={"type": "COMPLETED", "name": name, "message": ""},
        expected_start_time=then,
        end_time=then,
    )


@pytest.mark.parametrize(
    "schedule", ["{after_new_rows: 500}", "{cron: '0 2 * * *', after_days: 2}"]
)
def test_rows_alone_make_no_period_and_a_clock_makes_its_own(
    prefect: Any, alerts: Alerts, tmp_path: Path, schedule: str
) -> None:
    looks = watched_by_data(prefect, tmp_path, schedule)
    if "cron" in schedule:
        clock = a_schedule(30, cron="0 2 * * *", timezone="UTC")
        prefect.deployments[0]["schedules"].append(clock | {"parameters": looks["parameters"]})
    Silence(prefect.api, alerts, started=long_since())()
    alerts.deliver()
    assert not prefect.events


def test_a_weekend_is_no_silence_for_a_schedule_of_working_days() -> None:
    friday = datetime(2026, 11, 20, 3, tzinfo=UTC)
    times = fire_times({"cron": "0 2 * * 1-5", "timezone": "UTC"}, friday)
    assert [next(times).day, next(times).day] == [23, 24]


def test_an_interval_is_counted_from_its_anchor() -> None:
    times = fire_times(
        {"interval": 3600.0, "anchor_date": "2026-01-01T00:30:00Z"},
        datetime(2026, 11, 20, 3, tzinfo=UTC),
    )
    assert next(times) == datetime(2026, 11, 20, 3, 30, tzinfo=UTC)
