"""After a downtime one run catches up for all that were missed, whichever a worker starts first."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import StageFailed
from tasks.home import Home

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("prefect_server")]


def missed(
    tmp_path: Path,
    starter: Path,
    nights: int,
    schedule: str = '{cron: "0 2 * * *"}',
    deployment: str = "retrain",
) -> list[Any]:
    """The runs that a server left behind which was alive while no worker was, the oldest first."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
    from prefect.client.schemas.sorting import FlowRunSort

    from flows.deploying import apply_deployments

    name = tmp_path.name.replace("_", "-")
    recipe = tmp_path / "nightly.yaml"
    recipe.write_text(
        f"name: {name}\nbase: {starter}\ndataset: {{sources: [{{type: jsonl, path: a.jsonl}}]}}\n"
        f"schedule: {schedule}\n"
    )
    apply_deployments(Home(tmp_path / "home"), [recipe])
    with get_client(sync_client=True) as client:
        there = client.read_deployment_by_name(f"{deployment}/{deployment}")
        since = datetime.now(UTC) - timedelta(days=nights)
        body = {
            "start_time": since.isoformat(),
            "end_time": (datetime.now(UTC) + timedelta(days=2)).isoformat(),
            "min_time": timedelta(days=nights + 1).total_seconds(),
            "max_runs": nights + 3,
        }
        client.request("POST", f"/deployments/{there.id}/schedule", json=body)
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[there.id])),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        )
    return [run for run in runs if run.created_by and run.created_by.display_value == name]


def due(runs: list[Any]) -> list[Any]:
    return [run for run in runs if run.expected_start_time <= datetime.now(UTC)]


def test_deploying_again_leaves_the_missed_runs_to_be_caught_up(
    tmp_path: Path, starter: Path
) -> None:
    from prefect.client.orchestration import get_client

    from flows.deploying import apply_deployments

    runs = missed(tmp_path, starter, 4)
    assert apply_deployments(Home(tmp_path / "home"), [tmp_path / "nightly.yaml"]).changed == []
    with get_client(sync_client=True) as client:
        # Prefect deletes scheduled runs whenever a deployment is written: reading one would fail.
        assert [client.read_flow_run(run.id).id for run in runs] == [run.id for run in runs]


def test_retiring_a_schedule_leaves_the_missed_runs_of_all_others(
    tmp_path: Path, starter: Path
) -> None:
    """Prefect would delete them all with it: the schedule goes when none waits any more."""
    from prefect.client.orchestration import get_client

    from flows.commands.schedules import list_schedules
    from flows.deploying import apply_deployments

    gone, kept = tmp_path / "went-away", tmp_path / "kept-one"
    folders = [gone, kept]
    for folder in folders:
        folder.mkdir()
    late = {folder: due(missed(folder, starter, 3)) for folder in folders}
    (gone / "nightly.yaml").unlink()

    def deploy() -> list[str]:
        return apply_deployments(Home(tmp_path / "home"), [gone, kept]).changed

    def schedules() -> list[str]:
        there = client.read_deployment_by_name("retrain/retrain")
        return [it.slug or "" for it in client.read_deployment_schedules(there.id)]

    with get_client(sync_client=True) as client:
        (line,) = deploy()
        assert line.startswith("schedule retrain/went-away: retired, ")
        waiting = {run.id for run in client.read_flow_runs(limit=200)}
        assert {run.id for run in late[kept]} <= waiting
        assert not {run.id for run in late[gone]} & waiting
        assert "went-away" not in schedules()
        assert any(slug.startswith("retired:") for slug in schedules())
        assert not [
            row for row in list_schedules() if row["name"].startswith(("went-away", "retired"))
        ]
        # It may be wanted again meanwhile, and is another schedule then.
        missed(gone, starter, 1)
        assert "went-away" in schedules()
        for run in client.read_flow_runs(limit=200):
            if run.state_name in ("Scheduled", "Late"):
                client.delete_flow_run(run.id)
        assert deploy() == []
        assert not any(slug.startswith("retired:") for slug in schedules())


@pytest.mark.parametrize("newest_first", [False, True])
def test_of_five_missed_nights_one_trains(
    tmp_path: Path, starter: Path, monkeypatch: pytest.MonkeyPatch, newest_first: bool
) -> None:
    from prefect.flow_engine import run_flow
    from prefect.states import Completed

    import flows.retrain as retraining

    trained: list[Path] = []

    def train(recipe: Path, *_: object) -> Any:
        trained.append(recipe)
        return Completed(name="Trained", data={})

    monkeypatch.setattr(retraining, "_retrained", train)
    runs = missed(tmp_path, starter, 5)
    nights = due(runs)
    assert len(nights) == 5
    assert len(runs) > len(nights)
    states = [
        run_flow(retraining.retrain, flow_run=run, parameters=run.parameters, return_type="state")
        for run in (reversed(nights) if newest_first else nights)
    ]
    if newest_first:
        states.reverse()
    assert [state.name for state in states] == ["Skipped"] * 4 + ["Trained"]
    assert trained == [tmp_path / "nightly.yaml"]
    assert "does it for both" in str(states[0].message)


def test_a_failed_night_that_a_person_retries_trains_though_later_ones_failed_too(
    tmp_path: Path, starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow
    from prefect.states import AwaitingRetry, Completed, Failed, Running

    import flows.retrain as retraining

    trained = Completed(name="Trained", data={})
    monkeypatch.setattr(retraining, "_retrained", lambda *_: trained)
    friday, saturday, sunday = due(missed(tmp_path, starter, 3))

    def run(one: Any) -> Any:
        return run_flow(
            retraining.retrain, flow_run=one, parameters=one.parameters, return_type="state"
        )

    with get_client(sync_client=True) as client:
        for night in (friday, sunday):
            for state in (Running(), Failed(message="a column is missing")):
                client.set_flow_run_state(night.id, state, force=True)
        # Nobody asked for this one.
        assert run(saturday).name == "Skipped"
        client.set_flow_run_state(friday.id, AwaitingRetry(), force=True)
        assert run(client.read_flow_run(friday.id)).name == "Trained"


@pytest.mark.parametrize("nightly", [True, False], ids=["nightly", "monthly"])
def test_only_a_run_whose_next_one_is_near_gives_way_to_another_of_its_adapter(
    tmp_path: Path, starter: Path, monkeypatch: pytest.MonkeyPatch, nightly: bool
) -> None:
    from prefect.flow_engine import run_flow
    from prefect.states import Completed

    import flows.retrain as retraining
    from flows.orderly import SELDOM_SECONDS, _patience_seconds

    patience = []

    def train(*_: object) -> Any:
        patience.append(_patience_seconds())
        return Completed(name="Trained", data={})

    monkeypatch.setattr(retraining, "_retrained", train)
    day = (datetime.now(UTC) + timedelta(days=10)).day
    cron = "0 2 * * *" if nightly else f"0 2 {day if day <= 28 else 5} * *"
    runs = missed(tmp_path, starter, 2 if nightly else 40, f'{{cron: "{cron}"}}')
    run = due(runs)[-1]
    run_flow(retraining.retrain, flow_run=run, parameters=run.parameters, return_type="state")
    assert patience == [0 if nightly else SELDOM_SECONDS]


def test_of_the_looks_that_were_missed_the_newest_looks_and_so_does_a_persons(
    tmp_path: Path, starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.flow_engine import run_flow
    from prefect.states import Completed

    import flows.watch_data as watching

    monkeypatch.setattr(watching, "_looked", lambda *_: Completed(name="Looked", data={}))
    late = due(missed(tmp_path, starter, 1, "{after_days: 2}", "watch-data"))
    assert len(late) > 1
    states = [
        run_flow(watching.watch_data, flow_run=run, parameters=run.parameters, return_type="state")
        for run in (late[0], late[-2], late[-1])
    ]
    assert [state.name for state in states] == ["Skipped", "Skipped", "Looked"]
    asked = watching.watch_data(str(tmp_path / "nightly.yaml"), return_state=True)
    assert asked.name == "Looked"


def test_a_schedule_that_was_paused_and_resumed_still_trains_its_own_adapter(
    tmp_path: Path, starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow
    from prefect.states import Completed

    import flows.retrain as retraining

    missed(tmp_path, starter, 1)
    name = tmp_path.name.replace("_", "-")
    with get_client(sync_client=True) as client:
        there = client.read_deployment_by_name("retrain/retrain")
        found = {it.slug: it for it in client.read_deployment_schedules(there.id)}[name]
        for active in (False, True):
            # As the switch in Prefect's pages does.
            path = f"/deployments/{there.id}/schedules/{found.id}"
            client.request("PATCH", path, json={"active": active})
        start = datetime.now(UTC) - timedelta(days=30)
        body = {"start_time": start.isoformat(), "min_runs": 1, "max_runs": 1}
        client.request("POST", f"/deployments/{there.id}/schedule", json=body)
        runs = [
            run
            for run in client.read_flow_runs(limit=200)
            if run.created_by and run.created_by.display_value == name and not run.parameters
        ]
    assert runs, "Prefect keeps the parameters by now: flows.recipe_memory may go"
    trained: list[Path] = []

    def train(recipe: Path, *_: object) -> Any:
        trained.append(recipe)
        return Completed(name="Trained", data={})

    monkeypatch.setattr(retraining, "_retrained", train)
    monkeypatch.setattr(retraining, "refuse_outdated", lambda _: None)
    run_flow(retraining.retrain, flow_run=runs[0], parameters={}, return_type="state")
    assert trained == [tmp_path / "nightly.yaml"]


def test_a_person_is_never_told_that_a_later_run_is_due(
    tmp_path: Path, starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.states import Completed

    import flows.retrain as retraining

    missed(tmp_path, starter, 3)
    monkeypatch.setattr(retraining, "_retrained", lambda *_: Completed(name="Trained", data={}))
    state = retraining.retrain(str(tmp_path / "nightly.yaml"), return_state=True)
    assert state.name == "Trained"


@pytest.mark.parametrize(
    ("error", "is_left"), [(None, 0), (StageFailed("no"), 0), (ConnectionError("Prefect?"), 1)]
)
def test_a_run_of_the_command_line_has_a_lease_for_as_long_as_it_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None, is_left: int
) -> None:
    from prefect.states import Completed

    import flows.retrain as retraining
    from flows import run_leases

    home, held = Home(tmp_path / "loraline-home"), []

    def train(*_: object) -> Any:
        held.extend(home.locks.glob("flow-run-*"))
        if error:
            raise error
        return Completed(name="Trained", data={})

    monkeypatch.setattr(retraining, "_retrained", train)
    with suppress(StageFailed, ConnectionError), run_leases.leased():
        retraining.retrain(str(tmp_path / "nightly.yaml"))
    assert len(held) == 1
    run_leases.note_stopped()
    left = [path.name.partition("-")[0] for path in home.locks.glob("*")]
    assert sorted(left) == ["flow", "stopped"] * is_left
    run_leases._held.clear()
