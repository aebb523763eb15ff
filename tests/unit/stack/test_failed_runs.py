"""Failures that repeat: the first one of a series is told, under the name that automations listen to."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.stack.alerts import RUNS_REMEMBERED, Alert, Alerts
from flows.stack.crashes import LOOK_BACK, Crashes, repeated_run
from flows.stack.recipes import variable_of
from tasks.home import Home
from tasks.promotion.notices import notices_of

NOW = datetime.now(UTC)


def told_by(alerts: Alerts, prefect: Any) -> list[dict[str, Any]]:
    alerts.deliver()
    return [event["payload"] for event in prefect.events]


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "alerts.json"


@pytest.fixture
def alerts(tmp_path: Path, memory: Path, prefect: Any) -> Alerts:
    """Of a watchdog that first ran a month ago."""
    return alerts_of(tmp_path, memory, prefect)


def alerts_of(tmp_path: Path, memory: Path, prefect: Any) -> Alerts:
    notices = notices_of(Home(tmp_path / "home"), prefect_api=prefect.url, environ={})
    return Alerts(memory, notices, now=NOW - timedelta(days=30))


def add(
    prefect: Any, kind: str, minutes_ago: float, slug: str = "every-minute", **more: Any
) -> Any:
    """A run of the schedule `slug`."""
    return prefect.add(
        kind,
        end_time=(NOW - timedelta(minutes=minutes_ago)).isoformat(),
        **{
            "deployment_id": "r",
            "created_by": {"id": f"id of {slug}", "type": "SCHEDULE", "display_value": slug},
            **more,
        },
    )


@pytest.fixture(autouse=True)
def _deployments(prefect: Any) -> None:
    prefect.deployments += [
        {"id": "r", "name": "reconcile-registry"},
        {"id": "w", "name": "watch-data"},
        {"id": "p", "name": "promote"},
        {"id": "t", "name": "retrain"},
    ]


def test_what_fails_each_minute_is_told_once_until_it_has_worked(
    prefect: Any, alerts: Alerts, memory: Path, tmp_path: Path
) -> None:
    add(prefect, "COMPLETED", 30)
    first = add(prefect, "FAILED", 29)
    look = Crashes(prefect.api, alerts)
    look()
    for minute in range(28, 20, -1):
        add(prefect, "FAILED" if minute % 2 else "CRASHED", minute)
        look()
    (told,) = told_by(alerts, prefect)
    assert (told["name"], told["flow_run"]) == ("reconcile-registry", first["id"])
    (until,) = json.loads(memory.read_text())["until"].values()
    # It may go on for weeks.
    assert datetime.fromisoformat(until) > NOW + timedelta(days=100)
    # Also for a watchdog that is started anew, and sees only the end of it.
    del prefect.runs[first["id"]]
    add(prefect, "FAILED", 20)
    Crashes(prefect.api, alerts_of(tmp_path, memory, prefect))()
    assert len(told_by(alerts, prefect)) == 1
    add(prefect, "COMPLETED", 19)
    look()
    assert len(told_by(alerts, prefect)) == 1
    second = add(prefect, "FAILED", 18)
    add(prefect, "FAILED", 17)
    look()
    assert [it["flow_run"] for it in told_by(alerts, prefect)] == [first["id"], second["id"]]


@pytest.mark.parametrize("first", ["FAILED", "CRASHED"])
@pytest.mark.parametrize("second", ["FAILED", "CRASHED"])
def test_what_a_person_retried_is_told_and_repeated_for_itself(
    prefect: Any, alerts: Alerts, first: str, second: str
) -> None:
    look = Crashes(prefect.api, alerts)
    run = add(prefect, first, 60, slug="support", deployment_id="t", run_count=1)
    look()
    run["state"] = {"type": second, "name": second.capitalize(), "message": "once more"}
    run |= {"run_count": 2, "end_time": NOW.isoformat()}
    for _ in range(2):
        look()
    told = told_by(alerts, prefect)
    assert [it["kind"] for it in told] == [first.lower(), second.lower()]
    assert {it["flow_run"] for it in told} == {run["id"]}
    repeated = [repeated_run(key) for key in prefect.created]
    assert repeated == [run["id"]] * [first, second].count("CRASHED")


def test_two_streaks_that_are_seen_at_once_are_two_alerts(prefect: Any, alerts: Alerts) -> None:
    firsts = {add(prefect, "FAILED", 9)["id"]}
    add(prefect, "FAILED", 8)
    add(prefect, "COMPLETED", 7)
    firsts.add(add(prefect, "FAILED", 6)["id"])
    add(prefect, "COMPLETED", 5)
    Crashes(prefect.api, alerts)()
    assert {it["flow_run"] for it in told_by(alerts, prefect)} == firsts


def test_a_week_of_failures_each_minute_is_one_alert_and_few_questions(
    prefect: Any, alerts: Alerts, memory: Path, tmp_path: Path
) -> None:
    for minute in range(1000):
        add(prefect, "FAILED", 10 * minute + 5)
    look = Crashes(prefect.api, alerts)
    look()
    for _ in range(3):
        prefect.asked.clear()
        look()
        # One page: what was seen an hour ago is not read again.
        assert prefect.asked == ["/api/flow_runs/filter"]
    prefect.asked.clear()
    Crashes(prefect.api, alerts_of(tmp_path, memory, prefect))()
    # Another page would be of what was seen before the watchdog was started again.
    assert prefect.asked.count("/api/flow_runs/filter") <= 2
    assert len(told_by(alerts, prefect)) == 1


def test_what_ended_while_no_watchdog_lived_is_told(
    prefect: Any, alerts: Alerts, memory: Path, tmp_path: Path
) -> None:
    Crashes(prefect.api, alerts)()
    kept = json.loads(memory.read_text())
    kept["since"] = (NOW - timedelta(days=3)).isoformat()
    memory.write_text(json.dumps(kept))
    add(prefect, "FAILED", 2 * 24 * 60, slug="support", deployment_id="t")
    Crashes(prefect.api, alerts_of(tmp_path, memory, prefect))()
    assert [it["name"] for it in told_by(alerts, prefect)] == ["support"]


def test_what_was_told_costs_no_question_for_its_recipe(
    prefect: Any, alerts: Alerts, memory: Path, tmp_path: Path
) -> None:
    for minute in range(50):
        add(prefect, "FAILED", minute, slug="support", deployment_id="t")
    Crashes(prefect.api, alerts)()
    assert len(told_by(alerts, prefect)) == 50
    prefect.asked.clear()
    Crashes(prefect.api, alerts_of(tmp_path, memory, prefect))()
    assert not [path for path in prefect.asked if "variables" in path]
    assert len(told_by(alerts, prefect)) == 50


def test_one_schedule_s_success_does_not_end_another_one_s_streak(
    prefect: Any, alerts: Alerts
) -> None:
    look = Crashes(prefect.api, alerts)
    for minute in range(9, 3, -1):
        add(prefect, "FAILED", minute, slug="support", deployment_id="w")
        add(prefect, "COMPLETED", minute - 0.5, slug="billing", deployment_id="w")
        look()
    assert len(told_by(alerts, prefect)) == 1


def test_a_success_is_found_among_hundreds_of_another_schedule(
    prefect: Any, alerts: Alerts
) -> None:
    look = Crashes(prefect.api, alerts)
    for minute in (9, 7):
        add(prefect, "COMPLETED", minute, slug="support", deployment_id="w")
        for _ in range(210):
            add(prefect, "COMPLETED", minute - 0.5, slug="billing", deployment_id="w")
        add(prefect, "FAILED", minute - 1, slug="support", deployment_id="w")
        look()
    assert len(told_by(alerts, prefect)) == 2


def test_what_persons_start_is_told_apart_by_its_parameters(prefect: Any, alerts: Alerts) -> None:
    look = Crashes(prefect.api, alerts)
    runs = [("support", "FAILED"), ("billing", "COMPLETED"), ("billing", "FAILED")]
    for minute, (name, kind) in enumerate([*runs, ("support", "FAILED")]):
        given = {"name": name, "version": "3"}
        add(prefect, kind, 9 - minute, deployment_id="p", created_by=None, parameters=given)
        look()
    assert [it["name"] for it in told_by(alerts, prefect)] == ["support", "billing"]


def test_each_retraining_that_fails_is_told(prefect: Any, alerts: Alerts) -> None:
    for minute in (5, 4, 3):
        add(prefect, "FAILED", minute, slug="support", deployment_id="t")
    Crashes(prefect.api, alerts)()
    assert [it["name"] for it in told_by(alerts, prefect)] == ["support"] * 3


def test_a_retraining_that_cannot_be_repeated_is_told_and_keeps_nothing_else_back(
    prefect: Any, alerts: Alerts, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.stack.api import PrefectApi
    from tasks.errors import StageFailed

    ask = PrefectApi.ask

    def refuse(self: PrefectApi, method: str, path: str, body: Any = None) -> Any:
        if path.endswith("create_flow_run"):
            raise StageFailed(
                f"Prefect answered {method} {path} with status 409: no such parameter"
            )
        return ask(self, method, path, body)

    monkeypatch.setattr(PrefectApi, "ask", refuse)
    add(prefect, "CRASHED", 5, slug="support", deployment_id="t")
    add(prefect, "FAILED", 4)
    Crashes(prefect.api, alerts)()
    texts = [it["text"] for it in told_by(alerts, prefect)]
    assert len(texts) == 2
    assert any("could not be started again" in text and "409" in text for text in texts)


@pytest.mark.parametrize(
    "what", ["~nobody-here/x.yaml", "seed: 0x_", "seed: !!bool maybe", "[" * 3000]
)
def test_a_recipe_that_cannot_be_read_hides_no_other_crash(
    prefect: Any, alerts: Alerts, tmp_path: Path, what: str
) -> None:
    recipe = what
    if not what.startswith("~"):
        recipe = str(tmp_path / "x.yaml")
        Path(recipe).write_text(f"name: x\n{what}\n")
    for path in (recipe, str(tmp_path / "good.yaml")):
        add(prefect, "CRASHED", 5, deployment_id="t", created_by=None, parameters={"recipe": path})
    Crashes(prefect.api, alerts)()
    assert sorted(it["name"] for it in told_by(alerts, prefect)) == ["good", "x"]
    assert len(prefect.created) == 2


def test_an_end_that_nobody_understands_is_told_and_hides_no_other(
    prefect: Any, alerts: Alerts, tmp_path: Path
) -> None:
    for given in ({"overrides": 3, "recipe": "odd.yaml"}, {"recipe": str(tmp_path / "good.yaml")}):
        add(prefect, "CRASHED", 5, deployment_id="t", created_by=None, parameters=given)
    Crashes(prefect.api, alerts)()
    assert len(told_by(alerts, prefect)) == 2
    assert len(prefect.created) == 2


def test_the_memory_outlasts_what_is_looked_at_and_not_for_ever(
    prefect: Any, alerts: Alerts, memory: Path
) -> None:
    assert LOOK_BACK < RUNS_REMEMBERED
    end = Alert("failed", "one", "support", "It failed.")
    streak = Alert("failed", "two", "reconcile-registry", "It failed.", goes_on=True)
    silence = Alert("no-success", "three", "support", "Nothing came.")
    for alert in (end, streak, silence):
        assert alerts.tell(alert)
    later = json.loads(memory.read_text())
    passed = RUNS_REMEMBERED + timedelta(hours=1)
    later["until"] = {
        it: (datetime.fromisoformat(until) - passed).isoformat("T", "seconds")
        for it, until in later["until"].items()
    }
    memory.write_text(json.dumps(later))
    assert alerts.tell(Alert("failed", "four", "support", "It failed."))
    assert not alerts.is_told("failed", "one")
    # What still goes on is no news after a week either.
    assert alerts.is_told("failed", "two")
    assert alerts.is_told("no-success", "three")


def test_thousands_of_alerts_are_each_told_once(prefect: Any, alerts: Alerts, memory: Path) -> None:
    until = (NOW + timedelta(days=1)).isoformat("T", "seconds")
    kept = json.loads(memory.read_text())
    told = [Alert("failed", f"run {n}", "x", "x") for n in range(3000)]
    memory.write_text(json.dumps({**kept, "until": {it.id: until for it in told}}))
    assert alerts.tell(Alert("failed", "another", "x", "x"))
    assert not alerts.tell(told[0])


@pytest.mark.parametrize("given", ["path", "relative", "schedule", "gone", "override"])
def test_a_crash_bears_the_name_that_the_run_itself_would_give(
    prefect: Any, alerts: Alerts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    from flows import run_alerts

    recipe = tmp_path / "recipes" / "support.yaml"
    recipe.parent.mkdir()
    recipe.write_text("name: helpdesk\n")
    monkeypatch.chdir(tmp_path)
    parameters: dict[str, Any] = {"recipe": str(recipe)}
    creator = {"id": "s", "type": "SCHEDULE", "display_value": "helpdesk"}
    if given == "relative":
        parameters["recipe"] = "recipes/support.yaml"
        # A person's: no schedule's name to fall back on.
        creator |= {"type": "USER", "display_value": "ada"}
    elif given == "schedule":
        parameters = {}
        prefect.variables[variable_of("helpdesk")] = {"recipe": str(recipe)}
    elif given == "gone":
        recipe.unlink()
    elif given == "override":
        parameters["overrides"] = ["name=other"]
    run = add(prefect, "CRASHED", 5, deployment_id="t", parameters=parameters, created_by=creator)
    monkeypatch.chdir("/")
    Crashes(prefect.api, alerts, tmp_path)()
    (event,) = [alerts.deliver(), *prefect.events][1:]
    name = "other" if given == "override" else "helpdesk"
    assert event["payload"]["name"] == name
    assert event["payload"]["flow_run"] == run["id"]
    assert event["resource"]["prefect.resource.id"] == f"loraline.model.{name}"
    monkeypatch.chdir(tmp_path)
    here: Any = SimpleNamespace(parameters=parameters, created_by=SimpleNamespace(**creator))
    assert run_alerts._name(here, parameters.get("recipe", "")) == name


def test_a_crashed_command_is_named_by_its_recipe(
    prefect: Any, alerts: Alerts, tmp_path: Path
) -> None:
    recipe = tmp_path / "support.yaml"
    recipe.write_text("name: helpdesk\n")
    prefect.add("CRASHED", parameters={"recipe": str(recipe)})
    prefect.add("CRASHED", parameters={"recipe": "elsewhere/billing.yaml"})
    Crashes(prefect.api, alerts)()
    assert [it["name"] for it in told_by(alerts, prefect)] == ["helpdesk", "billing"]
