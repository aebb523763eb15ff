"""Promotion, rollback, approval and the look at the registry as flows, on a real Prefect server."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tasks.artifacts import Version
from tasks.home import Home
from tasks.tracking import Tracker
from tests.delivered import all_delivered

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    """A Prefect server for this module, with the deployment of the form."""
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        get_current_settings,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        from prefect.client.schemas.objects import ConcurrencyLimitConfig
        from prefect.flows import EntrypointType

        from flows.approve import approve
        from flows.deployment_file import read_deployments

        limit = read_deployments().deployment("approve").concurrency_limit
        assert limit is not None
        approve.to_deployment(
            "approve",
            entrypoint_type=EntrypointType.MODULE_PATH,
            # One at a time, as it is shipped: a form that waits must not keep another one from being shown.
            concurrency_limit=ConcurrencyLimitConfig(**limit.model_dump()),
        ).apply()
        yield str(get_current_settings().api.url)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database."""
    home = Home(tmp_path_factory.mktemp("database").resolve())
    _ = Tracker(home).client
    return home.mlflow / "mlflow.db"


@pytest.fixture
def tracker(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    """Three versions of `a` that passed the gate; 1 is champion. They hold nothing that could be loaded."""
    home = Home((tmp_path / "state").resolve())
    home.mlflow.mkdir(parents=True)
    shutil.copy(database, home.mlflow / "mlflow.db")
    monkeypatch.setenv("LORALINE_HOME", str(home.root))
    found = Tracker(home)
    found.client.create_registered_model("a")
    for number in (1, 2, 3):
        found.client.create_model_version(
            "a",
            source="mlflow-artifacts:/nowhere",
            tags={
                "loraline.gate": "passed",
                "loraline.adapter_sha256": str(number),
                "loraline.judged_against": "none" if number == 1 else "1",
                "loraline.gate_verdict": json.dumps(
                    {"passed": True, "rules": [{"metric": "rougeL", "passed": True, "why": "fine"}]}
                ),
            },
        )
    found.client.set_registered_model_alias("a", "champion", "1")
    return found


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every version loads, as far as the flows of this process see."""
    import tasks.registration.proving as proving

    monkeypatch.setattr(proving, "prove_version", lambda _, uri, **__: f"{uri} loads")


def champion(tracker: Tracker) -> str | None:
    value = tracker.client.get_registered_model("a").aliases.get("champion")
    return None if value is None else str(value)


def execute(run_id: UUID, api: str, home: Home, folder: Path) -> None:
    """Run it as a worker would: in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "prefect", "flow-run", "execute", str(run_id)],
        cwd=folder,
        env={
            **os.environ,
            "PREFECT_API_URL": api,
            "PYTHONPATH": str(ROOT),
            "LORALINE_HOME": str(home.root),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def form(name: str, version: str, **parameters: Any) -> UUID:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("approve/approve")
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters={"name": name, "version": version, **parameters}
        )
    return UUID(str(run.id))


def state(run_id: UUID) -> Any:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id).state


@pytest.mark.usefixtures("api", "loading")
def test_a_flow_promotes_another_goes_back_and_both_leave_an_artifact(tracker: Tracker) -> None:
    from prefect.artifacts import Artifact

    from flows.promote import promote
    from flows.rollback import rollback

    moved = promote("a", "2", "better", by="ada", return_state=True)
    assert (moved.name, moved.message) == ("Completed", "#2 promotion: version 2 instead of 1")
    assert champion(tracker) == "2"
    all_delivered()
    artifact = Artifact.get("loraline-promotion")
    assert artifact is not None
    assert "| rougeL | passed |  |  |  |  |  |" in str(artifact.data)
    assert "- rougeL: fine" in str(artifact.data)
    back = rollback("a", "worse", by="bob", return_state=True)
    assert back.message == "#3 rollback: version 1 instead of 2"
    # The server took the event of each: nothing waits.
    outbox = tracker.home.root / "outbox"
    assert outbox.is_dir()
    assert list(outbox.glob("[0-9]*.json")) == []
    assert champion(tracker) == "1"


@pytest.mark.usefixtures("api", "loading")
def test_a_flow_whose_version_the_gate_refused_ends_as_refused(tracker: Tracker) -> None:
    from flows.promote import promote

    tracker.client.set_model_version_tag("a", "2", "loraline.gate", "refused")
    refused = promote("a", "2", "I like it", return_state=True)
    assert (refused.type.value, refused.name) == ("COMPLETED", "Refused")
    assert champion(tracker) == "1"
    assert promote("a", "2", "I like it", force=True, return_state=True).name == "Completed"


def name_of(state: Any) -> str:
    """The name of the flow run that ended in this state."""
    from prefect.client.orchestration import get_client

    all_delivered()
    with get_client(sync_client=True) as client:
        return str(client.read_flow_run(state.state_details.flow_run_id).name)


@pytest.mark.usefixtures("api")
def test_the_look_at_the_registry_warns_of_a_champion_that_does_not_load(tracker: Tracker) -> None:
    from flows.reconcile_registry import reconcile_registry

    # These versions hold nothing: the real proof finds that out.
    seen = reconcile_registry(return_state=True)
    assert name_of(seen) == "look at the registry: a"
    assert (seen.type.value, seen.name) == ("COMPLETED", "Alert")
    assert "does not load" in str(seen.message)
    assert champion(tracker) == "1"
    again = reconcile_registry(return_state=True)
    # Told once: an automation on this state would else send it every minute.
    assert again.name == "Completed"
    assert "still so: Version 1 is the champion" in str(again.message)
    assert again.result()["written"] == []
    # One a minute: those with nothing to tell are told apart from the others.
    assert name_of(again) == "look at the registry"


def test_a_form_suspends_the_run_and_its_answer_promotes(
    small: Any, first_run: dict[str, Any], api: str
) -> None:
    """End to end: the retraining opens the form, a person answers it, a worker carries it out."""
    from prefect.flow_runs import resume_flow_run

    from flows.approval_forms import waiting_forms

    policy = ("--set", "name=asked", "--set", "promotion.policy=automatic")
    assert small.json("run", "recipes/small.yaml", *policy)["outcome"] == "registered"
    policy = ("--set", "name=asked", "--set", "promotion.policy=approval", "--set", "seed=7")
    asked = small.json("run", "recipes/small.yaml", *policy, PREFECT_API_URL=api)
    assert asked["outcome"] == "awaiting_approval", asked["reason"]
    (run,) = _runs_of("asked")
    assert f"/runs/flow-run/{run.id}" in asked["reason"]
    recipe = str(small.folder / "recipes" / "small.yaml")
    assert run.parameters == {
        "name": "asked",
        "version": "2",
        "hours": 72.0,
        "recipe": recipe,
        "overrides": ["name=asked", "promotion.policy=approval", "seed=7"],
    }
    home = Home(small.folder / ".loraline")
    execute(run.id, api, home, small.folder)
    assert state(run.id).name == "Suspended"
    assert [it.id for it in waiting_forms()] == [run.id]
    description = _input(run.id, "description")
    assert "Promote [version 2 of asked]" in description
    assert "The champion is version 1" in description

    # A form that is filled in wrongly is refused, and goes on waiting.
    with pytest.raises(RuntimeError, match="Cannot resume this run"):
        resume_flow_run(run.id, run_input={"decision": "maybe", "reason": "x", "name": "ada"})
    resume_flow_run(
        run.id, run_input={"decision": "promote", "reason": "it is shorter", "name": "ada"}
    )
    execute(run.id, api, home, small.folder)
    ended = state(run.id)
    assert (ended.name, ended.message) == ("Promoted", "#2 promotion: version 2 instead of 1")
    entry = small.json("audit", "asked")["entries"][-1]
    assert (entry["actor"], entry["reason"]) == ("ada", "it is shorter")
    tags = Tracker(home).client.get_model_version("asked", "2").tags
    record = json.loads(tags["loraline.approval"])
    assert (record["outcome"], record["by"]) == ("approved", "ada")


@pytest.mark.slow
def test_a_form_that_could_not_be_opened_is_opened_by_the_next_run_that_can(
    small: Any, first_run: dict[str, Any], api: str
) -> None:
    run = ("run", "recipes/small.yaml", "--set", "name=unheard")
    asking = ("--set", "promotion.policy=approval")
    # The Prefect of a plain run has no deployments.
    without = small.json(*run, *asking)
    assert without["outcome"] == "awaiting_approval", without["reason"]
    assert small.json(*run, *asking)["outcome"] == "skipped"
    assert _runs_of("unheard") == []
    asked = small.json(*run, *asking, PREFECT_API_URL=api)
    assert asked["outcome"] == "awaiting_approval", asked["reason"]
    assert asked["model_version"]["uri"] == without["model_version"]["uri"]
    (form_run,) = _runs_of("unheard")
    assert f"/runs/flow-run/{form_run.id}" in asked["reason"]
    assert small.json(*run, *asking, PREFECT_API_URL=api)["outcome"] == "skipped"


def test_an_approval_for_a_champion_of_yesterday_is_void(
    tracker: Tracker, api: str, tmp_path: Path, answered: Callable[..., None]
) -> None:
    run = form("a", "2")
    execute(run, api, tracker.home, tmp_path)
    tracker.client.set_registered_model_alias("a", "champion", "3")
    answered(run, "promote")
    execute(run, api, tracker.home, tmp_path)
    ended = state(run)
    assert (ended.type.value, ended.name) == ("COMPLETED", "Refused")
    assert "judged against version 1, but the champion is now version 3" in str(ended.message)
    assert champion(tracker) == "3"
    record = tracker.client.get_model_version("a", "2").tags["loraline.approval"]
    assert json.loads(record)["outcome"] == "approved, and refused"


def test_a_rejected_version_is_not_promoted_and_keeps_the_reason(
    tracker: Tracker, api: str, tmp_path: Path, answered: Callable[..., None]
) -> None:
    run = form("a", "2")
    execute(run, api, tracker.home, tmp_path)
    answered(run, "reject")
    execute(run, api, tracker.home, tmp_path)
    assert state(run).name == "Rejected"
    assert champion(tracker) == "1"
    record = json.loads(tracker.client.get_model_version("a", "2").tags["loraline.approval"])
    assert (record["outcome"], record["by"], record["reason"]) == ("rejected", "ada", "I read it")


def test_a_newer_candidate_closes_the_older_form_and_a_forgotten_one_expires(
    tracker: Tracker, api: str, tmp_path: Path
) -> None:
    from flows.approval_forms import close_expired

    older = form("a", "2")
    execute(older, api, tracker.home, tmp_path)
    newer = form("a", "3", hours=1)
    execute(newer, api, tracker.home, tmp_path)
    closed = state(older)
    assert (closed.type.value, closed.name) == ("COMPLETED", "Superseded")
    assert closed.message == "superseded by v3"
    assert state(newer).name == "Suspended"
    # One that comes late for an older version gives way itself.
    late = form("a", "2")
    execute(late, api, tracker.home, tmp_path)
    assert (state(late).name, state(late).message) == ("Superseded", "superseded by v3")

    assert close_expired() == 0
    assert close_expired(datetime.now(UTC) + timedelta(hours=2)) == 1
    expired = state(newer)
    assert (expired.type.value, expired.name) == ("COMPLETED", "Expired")
    assert "loraline promote a 3" in str(expired.message)


@pytest.mark.parametrize("in_time", [True, False])
def test_what_counts_is_when_the_form_was_answered_and_not_when_a_worker_is_free(
    tracker: Tracker,
    api: str,
    tmp_path: Path,
    answered: Callable[..., None],
    in_time: bool,
) -> None:
    # A busy machine takes its time until the form is there.
    seconds = 60.0 if in_time else 5.0
    made = time.monotonic()
    run = form("a", "2", hours=seconds / 3600)
    execute(run, api, tracker.home, tmp_path)
    if in_time:
        answered(run, "reject")
    time.sleep(max(0.0, made + seconds + 1 - time.monotonic()))
    if not in_time:
        answered(run, "reject")
    execute(run, api, tracker.home, tmp_path)
    assert state(run).name == ("Rejected" if in_time else "Expired")


@pytest.fixture
def asking(api: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that opens forms, outside of a flow run."""
    from tasks.promotion import task

    monkeypatch.setattr(task, "get_run_logger", lambda: logging.getLogger("test"))
    return task


def set_state(run_id: UUID, new: Any) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, new, force=True)


def candidate(version: str) -> Version:
    return Version(
        name="a", version=version, uri=f"models:/a/{version}", aliases=[], mlflow_run_id=""
    )


def test_a_question_is_asked_once_and_again_when_its_form_is_closed(
    asking: Any, tracker: Tracker
) -> None:
    from prefect.states import Completed, Crashed

    version = candidate("2").model_copy(update={"uri": f"models:/a/2?{tracker.home.root.parent}"})

    def ask() -> UUID:
        return UUID(str(asking._ask(version, "1", hours=72.0, recipe="", overrides=[]))[-36:])

    first = ask()
    assert ask() == first
    set_state(first, Completed(name="Expired"))
    second = ask()
    assert second != first
    assert ask() == second
    set_state(second, Crashed())
    assert ask() not in (first, second)


def test_a_version_is_unasked_until_there_is_a_form_an_answer_or_a_promotion(
    asking: Any, tracker: Tracker
) -> None:
    from prefect.states import Completed, Crashed

    # A number of its own: the module's server knows the forms of other tests.
    for _ in range(37):
        tracker.client.create_model_version("a", source="mlflow-artifacts:/nowhere")
    version = candidate("40")
    assert asking.is_unasked(tracker, version)
    place = asking._ask(version, "1", hours=72.0, recipe="", overrides=[])
    assert not asking.is_unasked(tracker, version)
    # The run that would have shown the form died: nobody was asked.
    set_state(UUID(str(place)[-36:]), Crashed())
    assert asking.is_unasked(tracker, version)
    again = asking._ask(version, "1", hours=72.0, recipe="", overrides=[])
    set_state(UUID(str(again)[-36:]), Completed(name="Expired"))
    assert not asking.is_unasked(tracker, version)
    answered = candidate("39")
    assert asking.is_unasked(tracker, answered)
    tracker.client.set_model_version_tag("a", "39", "loraline.approval", "{}")
    assert not asking.is_unasked(tracker, answered)
    assert not asking.is_unasked(
        tracker, candidate("38").model_copy(update={"aliases": ["champion"]})
    )


@pytest.mark.usefixtures("api", "tracker")
def test_a_form_that_is_answered_in_the_moment_of_its_closing_is_left_to_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.states import Scheduled, Suspended

    import flows.approval_forms as forms

    run = form("answered-late", "2", hours=1)
    set_state(run, Suspended())
    listed = [it for it in forms.waiting_forms() if it.id == run]
    assert len(listed) == 1
    # As somebody presses the button, after the list was made.
    set_state(run, Scheduled(name="Resuming"))
    monkeypatch.setattr(forms, "waiting_forms", lambda: listed)
    assert forms.close_expired(datetime.now(UTC) + timedelta(hours=2)) == 0
    assert forms.make_way("answered-late", "3", None) is None
    assert state(run).name == "Resuming"
    set_state(run, Suspended())
    monkeypatch.undo()
    listed = [it for it in forms.waiting_forms() if it.id == run]
    monkeypatch.setattr(forms, "waiting_forms", lambda: listed)
    assert forms.close_expired(datetime.now(UTC) + timedelta(hours=2)) == 1
    assert state(run).name == "Expired"


@pytest.fixture
def answered() -> Callable[..., None]:
    """Answers a form."""
    from prefect.flow_runs import resume_flow_run

    def answer(run_id: UUID, decision: str) -> None:
        resume_flow_run(
            run_id, run_input={"decision": decision, "reason": "I read it", "name": "ada"}
        )

    return answer


def _runs_of(name: str) -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["approve"])))
    return [run for run in runs if run.parameters.get("name") == name]


def _input(run_id: UUID, key: str) -> str:
    from prefect.input.actions import read_flow_run_input

    keyset = state(run_id).state_details.run_input_keyset
    return str(read_flow_run_input(keyset[key], flow_run_id=run_id))
