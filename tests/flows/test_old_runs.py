"""Prefect forgets the runs that looked and found nothing after a day, and those that tell something stay."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.connection import RUNS_KEPT_DAYS
from flows.stack import old_runs
from flows.stack.api import PrefectApi
from flows.stack.old_runs import NOTHING_FOUND, OldRuns
from flows.stack.streaks import streaks
from flows.stack.successes import NOTHING_DUE
from tasks.errors import StageFailed
from tasks.home import Home
from tests.running_stack import running_stack, until

DAYS_AGO_2 = timedelta(days=2)


@pytest.fixture
def deployments(api: PrefectApi) -> dict[str, str]:
    """Of the names that the stack has, without their flows."""
    found = {}
    for name in ("reconcile-registry", "watch-data", "retrain"):
        flow = api.ask("POST", "/flows/", {"name": f"old-{name}"})["id"]
        body = {"name": name, "flow_id": flow, "entrypoint": "a.b"}
        found[name] = api.ask("POST", "/deployments/", body)["id"]
    return found


def run(
    api: PrefectApi,
    deployment: str,
    message: str,
    ago: timedelta = DAYS_AGO_2,
    *,
    begun: bool = True,
    **state: str,
) -> str:
    """One that ended so."""
    then = (datetime.now(UTC) - ago).isoformat()
    due = {"type": "SCHEDULED", "state_details": {"scheduled_time": then}}
    body = {"state": due}
    made = api.ask("POST", f"/deployments/{deployment}/create_flow_run", body)["id"]
    final = {"type": "COMPLETED", "name": "Completed", **state}
    steps = [{"type": "RUNNING"}, final] if begun else [final]
    for step in steps:
        wanted = {"state": {**step, "message": message}, "force": True}
        api.ask("POST", f"/flow_runs/{made}/set_state", wanted)
    return str(made)


def left(api: PrefectApi, runs: list[str]) -> set[str]:
    return {it["id"] for it in api.flow_runs({"id": {"any_": runs}})}


def test_only_looks_that_found_nothing_go_and_only_after_a_day(
    api: PrefectApi, deployments: dict[str, str]
) -> None:
    look, watch = deployments["reconcile-registry"], deployments["watch-data"]
    goes = [
        run(api, look, "2 models, nothing moved"),
        run(api, look, "one at a time", begun=False, type="CANCELLED", name="Cancelled"),
        run(api, watch, "Nothing is new. No training is due.", name=NOTHING_DUE),
    ]
    stays = [
        run(api, look, "2 models, nothing moved", timedelta(hours=23)),
        run(api, look, "support: promoted version 3"),
        run(api, look, "the champion does not load, nothing moved", name="Alert"),
        run(api, look, "nothing moved", type="FAILED", name="Failed"),
        run(api, look, "a person ended it", type="CANCELLED", name="Cancelled"),
        run(api, watch, "600 rows are new. 600 new rows."),
        run(api, deployments["retrain"], "nothing moved"),
    ]
    forget = OldRuns(api)
    forget()
    assert left(api, goes + stays) == set(stays)
    # What stayed is not read again, and what comes meanwhile still goes.
    late = run(api, look, "2 models, nothing moved", timedelta(days=1, hours=1))
    run(api, look, "2 models, nothing moved", timedelta(0))
    assert forget() == 1
    assert left(api, [late]) == set()
    assert left(api, stays) == set(stays)


def test_many_go_in_pages_however_many_between_them_stay(
    api: PrefectApi, deployments: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_runs, "PAGE", 3)
    monkeypatch.setattr("flows.stack.api.DELETED_AT_ONCE", 2)
    look = deployments["reconcile-registry"]
    stays: list[str] = []
    goes: list[str] = []
    for number in range(12):
        kept = number < 4 or number % 5 == 0
        message = "support: promoted" if kept else "1 models, nothing moved"
        made = run(api, look, message, timedelta(days=9, minutes=-number))
        (stays if kept else goes).append(made)
    stays.append(run(api, look, "1 models, nothing moved", timedelta(0)))
    forget = OldRuns(api)
    looks = [forget() for _ in range(10)]
    assert max(looks) <= 3
    assert left(api, goes + stays) == set(stays)


def test_the_last_success_before_a_failure_that_lasts_stays(
    api: PrefectApi, deployments: dict[str, str]
) -> None:
    for name, message, state in (
        ("reconcile-registry", "1 models, nothing moved", "Completed"),
        ("watch-data", "Nothing is new.", NOTHING_DUE),
    ):
        goes, stays = (run(api, deployments[name], message, name=state) for _ in range(2))
        (failed,) = api.flow_runs(
            {"id": {"any_": [run(api, deployments[name], "away", type="FAILED", name="Failed")]}}
        )
        (before,) = streaks(api, [failed])
        late = run(api, deployments[name], "A later one does it for both.", name="Skipped")
        assert OldRuns(api)() == (2 if name == "watch-data" else 1)
        assert left(api, [goes, stays, late]) - {late} == {stays}
        # The same streak as before: nobody is told a second time.
        assert [it.subject for it in streaks(api, [failed])] == [before.subject]


def test_a_server_that_is_away_is_a_look_that_failed() -> None:
    with pytest.raises(StageFailed, match="does not answer"):
        OldRuns(PrefectApi("http://127.0.0.1:9/api"))()


def test_the_flows_say_it_in_the_words_that_are_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import flows.reconcile_registry as reconcile
    import flows.watch_data as watch

    for name in ("close_expired", "reachable_tracker", "verifier"):
        monkeypatch.setattr(reconcile, name, lambda *_: [])
    monkeypatch.setattr(reconcile, "reconcile_models", lambda *_, **__: [])
    state = reconcile.reconcile_registry.fn()
    (name,), told = NOTHING_FOUND["reconcile-registry"]
    assert state.name == name
    assert told in str(state.message)

    schedule = SimpleNamespace(after_new_rows=5, after_days=None)
    base = SimpleNamespace(is_local=True)
    recipe: Any = SimpleNamespace(name="a", dataset=None, base=base, schedule=schedule)
    monkeypatch.setenv("LORALINE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(watch, "load_recipe", lambda _: recipe)
    seen = SimpleNamespace(cause=None, told="Nothing is new", new_rows=0, asked_at=None)
    monkeypatch.setattr(watch, "look_at_sources", lambda *_, **__: seen)
    state = watch.watch_data.fn(str(tmp_path / "recipe.yaml"))
    assert state.name == NOTHING_FOUND["watch-data"][0][0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stack_forgets_an_old_run_with_its_logs_and_artifacts_and_keeps_a_younger_one(
    loraline: Any, tmp_path: Path
) -> None:
    often = {"PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "5"}
    with running_stack(loraline(tmp_path), **often) as stack:
        old, young = (ended_run(stack.api) for _ in range(2))
        assert what_is_left(stack.api, old) == what_is_left(stack.api, young) == [1, 1, 1]
        age(stack.home, old, RUNS_KEPT_DAYS + 1)
        age(stack.home, young, RUNS_KEPT_DAYS - 1)
        until(lambda: what_is_left(stack.api, old) == [0, 0, 0], 240)
        assert what_is_left(stack.api, young) == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_who_collects_is_told_of_them_and_need_not_wait(loraline: Any, tmp_path: Path) -> None:
    cli = loraline(tmp_path)
    with running_stack(cli) as stack:
        old, young = (ended_run(stack.api) for _ in range(2))
        age(stack.home, old, RUNS_KEPT_DAYS + 1)
        age(stack.home, young, RUNS_KEPT_DAYS - 1)
        assert cli.json("gc")["long_ended_prefect_runs"] == [old]
        assert "goes  1 Prefect runs that ended 90 days ago" in cli("gc").stdout
        assert what_is_left(stack.api, old)[0] == 1
        assert cli.json("gc", "--yes")["long_ended_prefect_runs"] == [old]
        assert cli.json("gc")["long_ended_prefect_runs"] == []
        assert [what_is_left(stack.api, it)[0] for it in (old, young)] == [0, 1]


def age(home: Home, run_id: str, days: int) -> None:
    """Have it ended so long ago, at the same time of the day."""
    with closing(sqlite3.connect(home.prefect / "prefect.db", timeout=60)) as database:
        then = f"date(end_time, '-{days} days') || substr(end_time, 11)"
        sql = f"UPDATE flow_run SET end_time = {then} WHERE id = ?"
        assert database.execute(sql, (run_id,)).rowcount == 1
        database.commit()


def ended_run(api: PrefectApi) -> str:
    """One with a line in its log and an artifact."""
    flow = api.ask("POST", "/flows/", {"name": "nightly"})["id"]
    run_id = api.ask("POST", "/flow_runs/", {"flow_id": flow, "state": {"type": "RUNNING"}})["id"]
    line = {"name": "a", "level": 20, "message": "b", "timestamp": datetime.now(UTC).isoformat()}
    api.ask("POST", "/logs/", [{**line, "flow_run_id": run_id}])  # type: ignore[arg-type]
    api.ask("POST", "/artifacts/", {"key": "verdict", "type": "markdown", "flow_run_id": run_id})
    done = {"state": {"type": "COMPLETED"}, "force": True}
    api.ask("POST", f"/flow_runs/{run_id}/set_state", done)
    return str(run_id)


def what_is_left(api: PrefectApi, run_id: str) -> list[int]:
    """How many runs of this id, lines of its log and artifacts there are."""
    of_run = {"flow_run_id": {"any_": [run_id]}}
    return [
        len(api.ask("POST", "/flow_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})),
        len(api.ask("POST", "/logs/filter", {"logs": of_run})),
        len(api.ask("POST", "/artifacts/filter", {"artifacts": of_run})),
    ]
