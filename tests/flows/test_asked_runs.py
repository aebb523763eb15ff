"""New data asks for one training at a time, and a run that comes after the answer ends at once."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.artifacts import Outcome
from tasks.errors import StageFailed
from tasks.home import Home, home
from tasks.progress import announce
from tasks.retention.ledger import entries, recorded
from tasks.turn import adapter_turn

pytestmark = pytest.mark.usefixtures("prefect_server")


def rows(start: int, stop: int) -> str:
    return "".join(
        json.dumps({"prompt": f"question {n}", "completion": f"answer {n}"}) + "\n"
        for n in range(start, stop)
    )


@pytest.fixture
def recipe(tmp_path: Path, starter: Path) -> Path:
    """One that fifty new rows start; its name is the test's own."""
    path = tmp_path / "asked.yaml"
    (tmp_path / "rows.jsonl").write_text(rows(0, 100))
    path.write_text(
        f"name: {name_of(tmp_path)}\nbase: {starter}\n"
        "dataset: {sources: [{type: jsonl, path: rows.jsonl}]}\nschedule: {after_new_rows: 50}\n"
    )
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reasons of the events that would have been posted."""
    from flows import watch_data

    reasons: list[str] = []
    monkeypatch.setattr(
        watch_data, "ask_for_retraining", lambda _name, _path, reason: reasons.append(reason)
    )
    return reasons


def name_of(folder: Path) -> str:
    return folder.name.replace("_", "-")


def look(recipe: Path) -> Any:
    from flows.watch_data import watch_data

    return watch_data(str(recipe), return_state=True)


def trained(recipe: Path, *, as_written: bool = True) -> None:
    with recorded(home(), name_of(recipe.parent), 5, as_written=as_written):
        announce("outcome", outcome=Outcome(outcome="registered", reason="").model_dump())


def deployed_run(recipe: Path, due_in: timedelta | None = None, **more: Any) -> Any:
    """A run of the deployment that has not begun."""
    from prefect.client.orchestration import get_client
    from prefect.states import Scheduled

    from flows.deploying import apply_deployments

    apply_deployments(Home(recipe.parent / "home"), [])
    state: Any = None if due_in is None else Scheduled(scheduled_time=datetime.now(UTC) + due_in)
    with get_client(sync_client=True) as client:
        there = client.read_deployment_by_name("retrain/retrain")
        return client.create_flow_run_from_deployment(
            there.id, parameters={"recipe": str(recipe)}, state=state, **more
        )


def test_nobody_is_asked_while_the_adapter_is_trained(recipe: Path, asked: list[str]) -> None:
    trained(recipe)
    assert look(recipe).name == "Nothing due"
    (recipe.parent / "rows.jsonl").write_text(rows(0, 160))
    state: Any
    with adapter_turn(home(), name_of(recipe.parent), run="small · nightly"):
        state = look(recipe)
    assert not asked
    assert state.name == "Completed"
    assert "60 of 160 rows are new" in state.message
    assert "is being trained" in state.message
    # It failed: what it left is asked for now, and once.
    assert look(recipe).result()["asked"]
    (recipe.parent / "rows.jsonl").write_text(rows(0, 400))
    state = look(recipe)
    assert asked == ["data: 60 of 160 rows are new (asked for: 50)"]
    assert state.name == "Completed"
    assert "A training was asked for at" in state.message


def test_nobody_is_asked_while_a_run_of_the_recipe_waits_for_a_worker(
    recipe: Path, asked: list[str]
) -> None:
    from prefect.client.orchestration import get_client

    deployed_run(recipe.with_name("other.yaml"))
    deployed_run(recipe, due_in=timedelta(hours=3))
    waits = deployed_run(recipe)
    state: Any = look(recipe)
    assert not asked
    assert f"The run {waits.name} is to train it" in state.message
    with get_client(sync_client=True) as client:
        client.delete_flow_run(waits.id)
    look(recipe)
    assert len(asked) == 1


def trained_elsewhere(recipe: Path, *states: Any) -> Any:
    """A run of another machine, which Prefect knows, and no ledger of this one."""
    from prefect.client.orchestration import get_client

    run = deployed_run(recipe, name=f"{name_of(recipe.parent)} v1 · nightly")
    with get_client(sync_client=True) as client:
        for state in states:
            client.set_flow_run_state(run.id, state, force=True)
    return run


def test_what_another_machine_trains_is_known_and_so_are_the_rows_that_it_saw(
    recipe: Path, asked: list[str]
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Completed, Running

    # Which takes the home of its own that the others are looked at from.
    trained_elsewhere(recipe.with_name("other.yaml"), Running(), Completed())
    look(recipe)
    assert len(asked) == 1
    (recipe.parent / "rows.jsonl").write_text(rows(0, 130))
    look(recipe)
    trained_elsewhere(recipe, Running(), Completed(name="Skipped", message="Another run does it."))
    assert look(recipe).result()["new_rows"] == 130
    trained_elsewhere(recipe, Running(), Completed())
    state: Any = look(recipe)
    assert (state.name, state.result()["new_rows"]) == ("Nothing due", 0)
    trained_elsewhere(recipe, Running())
    (recipe.parent / "rows.jsonl").write_text(rows(0, 190))
    state = look(recipe)
    assert "60 of 190 rows are new" in state.message
    assert "v1 · nightly is to train it and is at it" in state.message
    assert len(asked) == 1
    with get_client(sync_client=True) as client:
        (under_way,) = [
            run
            for run in client.read_flow_runs(limit=200)
            if run.state_type == "RUNNING" and run.parameters.get("recipe") == str(recipe)
        ]
        client.delete_flow_run(under_way.id)
    look(recipe)
    assert len(asked) == 2


@pytest.mark.parametrize("state", ["running", "paused", "retried"])
def test_rows_that_came_in_a_long_training_of_another_machine_are_new_however_often_one_looked(
    recipe: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import AwaitingRetry, Completed, Paused, Running

    from flows import known_trainings

    # Which takes the home of its own that all looks are made from.
    trained_elsewhere(recipe.with_name("other.yaml"))
    look(recipe)
    assert len(asked) == 1
    # For its approval, or after an outage.
    later: dict[str, list[Any]] = {"paused": [Paused()], "retried": [AwaitingRetry()]}
    run = trained_elsewhere(recipe, Running(), *later.get(state, []))
    for count in (200, 300, 400):
        (recipe.parent / "rows.jsonl").write_text(rows(0, count))
        look(recipe)
    # Nobody knows just then what is under way; what may have been seen is kept.
    with pytest.MonkeyPatch.context() as away:
        away.setattr("flows.known_trainings.get_client", lambda **_: 1 / 0)
        away.setattr("flows.watch_data.under_way", lambda *_: "nobody knows")
        (recipe.parent / "rows.jsonl").write_text(rows(0, 401))
        look(recipe)
    read = known_trainings._retrainings

    def ends_meanwhile(*asked_for: Any) -> Any:
        found = read(*asked_for)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run.id, Completed(), force=True)
        return found

    monkeypatch.setattr(known_trainings, "_retrainings", ends_meanwhile)
    seen: Any = look(recipe)
    assert seen.result()["new_rows"] == 301
    assert asked[1:] == ["data: 301 of 401 rows are new (asked for: 50)"]


def test_two_looks_at_once_are_one(recipe: Path, asked: list[str]) -> None:
    from tasks.dataset.watching import Watch

    folder = home().root / "watch" / name_of(recipe.parent)
    with Watch(folder, folder).alone() as first:
        assert first
        assert look(recipe).name == "Skipped"
    assert not asked
    look(recipe)
    assert len(asked) == 1


@pytest.mark.parametrize("overrides", [(), ("seed=5",)], ids=["recipe", "other settings"])
@pytest.mark.parametrize(
    "when", ["before", "while it waits", "elsewhere", "with other settings", "never"]
)
def test_a_run_that_an_event_asked_for_trains_only_what_no_success_has_seen(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, when: str, overrides: tuple[str, ...]
) -> None:
    from prefect.flow_engine import run_flow
    from prefect.states import Completed, Running

    import flows.retrain as retraining
    from flows import orderly
    from flows.stack.crashes import AGAIN

    if when == "before":
        trained(recipe)
    # As an automation's, for all that is asked of it here.
    run = deployed_run(recipe, tags=[AGAIN])
    if when == "while it waits":
        trained(recipe)
    if when == "elsewhere":
        trained_elsewhere(recipe, Running(), Completed())
    if when == "with other settings":
        trained(recipe, as_written=False)
    facts = SimpleNamespace(force=False, overrides=overrides)
    keeps = SimpleNamespace(min_free_gb=0.0, keep_runs=5)
    record: Any = SimpleNamespace(
        home=home(),
        facts=facts,
        tracker=SimpleNamespace(uri="sqlite:///none.db"),
        recipe=SimpleNamespace(name=name_of(recipe.parent), retention=keeps),
    )

    def train(*_: object) -> Any:
        with orderly.orderly(record):
            return Completed(name="Trained", data={})

    monkeypatch.setattr(retraining, "_retrained", train)
    monkeypatch.setattr(orderly, "_collect", lambda _: None)
    state: Any = run_flow(
        retraining.retrain, flow_run=run, parameters=run.parameters, return_type="state"
    )
    answered = when in ("while it waits", "elsewhere") and not overrides
    assert state.name == ("Skipped" if answered else "Trained")
    if answered:
        assert "ended well, has done that" in str(state.message)
    else:
        assert entries(home())[name_of(recipe.parent)][0][1].as_written == (not overrides)


def test_a_training_with_other_settings_leaves_the_new_rows_new(
    recipe: Path, asked: list[str]
) -> None:
    trained(recipe)
    look(recipe)
    (recipe.parent / "rows.jsonl").write_text(rows(0, 160))
    trained(recipe, as_written=False)
    assert look(recipe).result()["new_rows"] == 60
    assert len(asked) == 1


def test_the_server_tells_the_last_success_and_the_last_look_that_found_nothing_due(
    recipe: Path,
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL
    from prefect.states import Completed, Running

    from flows.deploying import apply_deployments
    from flows.stack.api import PrefectApi, utc
    from flows.stack.successes import NOTHING_DUE, Successes

    apply_deployments(Home(recipe.parent / "home"), [recipe])
    other = deployed_run(recipe.with_name("other.yaml"))
    run = deployed_run(recipe)
    successes = Successes(PrefectApi(str(PREFECT_API_URL.value())))
    with get_client(sync_client=True) as client:
        retrain = client.read_deployment_by_name("retrain/retrain")
        ends: list[Any] = [(run, Completed()), (other, Completed(name="Skipped"))]
        for one, state in ends:
            client.set_flow_run_state(one.id, Running(), force=True)
            client.set_flow_run_state(one.id, state, force=True)
        for _ in range(2):
            successes.read([str(retrain.id)])
        success = successes.of(str(recipe))
        assert success is not None
        assert success["id"] == str(run.id)
        assert successes.of(str(recipe.with_name("other.yaml"))) is None
        # The looks of its schedule, one with nothing to do and two later ones with something.
        watch = client.read_deployment_by_name("watch-data/watch-data")
        body = {
            "start_time": (datetime.now(UTC) - timedelta(hours=2)).isoformat(),
            "end_time": datetime.now(UTC).isoformat(),
            "min_runs": 3,
            "max_runs": 3,
        }
        path: Any = f"/deployments/{watch.id}/schedule"
        client.request("POST", path, json=body)
        name = name_of(recipe.parent)
        looks = [
            it
            for it in client.read_flow_runs(limit=200)
            if it.created_by and it.created_by.display_value == name
        ]
        (schedule,) = {it.created_by.id for it in looks if it.created_by}
        assert successes.quiet_look(str(watch.id), str(schedule)) is None
        for one, state_name in zip(looks, (NOTHING_DUE, None, None), strict=False):
            client.set_flow_run_state(one.id, Running(), force=True)
            client.set_flow_run_state(one.id, Completed(name=state_name), force=True)
    quiet = successes.quiet_look(str(watch.id), str(schedule))
    assert quiet is not None
    assert quiet["id"] == str(looks[0].id)
    assert datetime.now(UTC) - utc(quiet["end_time"]) < timedelta(minutes=5)


def test_a_crashed_run_of_a_schedule_is_listed_by_how_its_repetition_went(recipe: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL
    from prefect.states import Completed, Crashed, Running

    from flows.commands.schedules import list_schedules
    from flows.deploying import apply_deployments
    from flows.stack.alerts import Alerts
    from flows.stack.api import PrefectApi
    from flows.stack.crashes import Crashes, repetition_key
    from tasks.promotion.notices import Notices

    name = name_of(recipe.parent)
    recipe.write_text(recipe.read_text().replace("after_new_rows: 50", 'cron: "0 2 * * *"'))
    apply_deployments(Home(recipe.parent / "home"), [recipe])

    def listed() -> Any:
        return next(row["last_outcome"] for row in list_schedules() if row["name"] == name)

    alerts = Alerts(
        recipe.parent / "alerts.json",
        Notices(recipe.parent / "outbox"),
        now=datetime.now(UTC) - timedelta(days=1),
    )
    with get_client(sync_client=True) as client:
        there = client.read_deployment_by_name("retrain/retrain")
        start = datetime.now(UTC) - timedelta(days=2)
        body = {"start_time": start.isoformat(), "min_runs": 1, "max_runs": 1}
        path: Any = f"/deployments/{there.id}/schedule"
        client.request("POST", path, json=body)
        run = next(
            it
            for it in client.read_flow_runs(limit=200)
            if it.created_by and it.created_by.display_value == name
        )
        states: list[Any] = [Running(), Crashed(message="killed")]
        for state in states:
            client.set_flow_run_state(run.id, state, force=True)
        Crashes(PrefectApi(str(PREFECT_API_URL.value())), alerts)()
        again = next(
            it for it in client.read_flow_runs(limit=200) if it.idempotency_key == f"again-{run.id}"
        )
        # Not begun: nobody knows yet how it goes.
        assert listed() == "Crashed"
        client.set_flow_run_state(again.id, Running(), force=True)
        assert listed() == "Running"
        client.set_flow_run_state(again.id, Completed(), force=True)
        assert listed() == "Completed"
        # The stack was stopped: what goes on then may be cut off in its turn.
        client.set_flow_run_state(again.id, Crashed(message="stopped"), force=True)
        third = client.create_flow_run_from_deployment(
            there.id, idempotency_key=repetition_key(str(again.id))
        )
        client.set_flow_run_state(third.id, Running(), force=True)
        assert listed() == "Running"


@pytest.mark.parametrize("name", ["retrain", "evaluate", "predict"])
@pytest.mark.parametrize(("pool", "leased"), [("process", False), ("docker", True)])
def test_a_run_whose_process_nobody_sees_has_a_lease_that_its_death_frees(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, pool: str, leased: bool, name: str
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.flow_engine import run_flow
    from prefect.states import Completed

    from flows import evaluate_version, predict_batch, retrain, run_leases

    work_pool = f"{name_of(recipe.parent)}-pool"
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=work_pool, type=pool))
    run = deployed_run(recipe)
    assert run_leases.is_seen(run.model_copy(update={"work_pool_name": work_pool})) != leased
    held: list[str] = []

    def work(*_: object, **__: object) -> Any:
        held.extend(run_leases.held())
        return Completed(data={})

    module = {"retrain": retrain, "evaluate": evaluate_version, "predict": predict_batch}[name]
    monkeypatch.setattr(module, "bridged_run", work)
    monkeypatch.setattr(run_leases, "_held", {})
    monkeypatch.setattr(run_leases, "is_seen", lambda _: not leased)
    rows = recipe.parent / "rows.jsonl"
    parameters: dict[str, Any] = {"recipe": str(recipe)}
    if name == "predict":
        target = rows.with_name("answers.jsonl")
        parameters = {"input": str(rows), "output": str(target), "model": "small"}
    flow = getattr(module, name)
    run_flow(flow, flow_run=run, parameters=parameters, return_type="state")
    run_leases._give_back()
    assert (str(run.id) in held) == leased
    # A function that is called without a run has nothing to hold.
    run_leases.begin(home())
    assert not run_leases.held()


def test_an_attempt_that_prefect_itself_makes_again_has_its_own_lease(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.flow_engine import run_flow
    from prefect.states import Completed

    from flows import retrain, run_leases

    leases: list[list[str]] = []

    def work(*_: object, **__: object) -> Any:
        leases.append([it.name for it in home().locks.glob("flow-run-*.lock")])
        if len(leases) == 1:
            raise StageFailed("the disk hiccups")
        return Completed(data={})

    run = deployed_run(recipe)
    monkeypatch.setattr(retrain, "bridged_run", work)
    monkeypatch.setattr(run_leases, "_held", {})
    monkeypatch.setattr(run_leases, "is_seen", lambda _: False)
    twice = retrain.retrain.with_options(retries=1, retry_delay_seconds=0)
    run_flow(twice, flow_run=run, parameters={"recipe": str(recipe)}, return_type="state")
    run_leases._give_back()
    assert leases == [[f"flow-run-{run.id}.{attempt}.lock"] for attempt in (1, 2)]
    assert not list(home().locks.glob("flow-run-*.lock"))
