"""A retraining tells by itself how it failed, and that it was refused; a command on a terminal does not."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from tasks.errors import Interrupted, Killed, OverBudget, StageFailed
from tasks.home import home
from tasks.stack import Server, write_stack
from tests.webhook import webhook

pytestmark = pytest.mark.long


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=300),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        from prefect.flows import EntrypointType

        from flows.retrain import retrain

        retrain.to_deployment("retrain", entrypoint_type=EntrypointType.MODULE_PATH).apply()
        yield


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What a webhook of this home is sent."""
    with webhook() as (url, found):
        monkeypatch.setenv("LORALINE_WEBHOOKS", url)
        yield found


def of_the_deployment(recipe: Path) -> Any:
    """A run of the deployment, in this process; its final state."""
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow

    from flows.retrain import retrain

    parameters = {"recipe": str(recipe)}
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("retrain/retrain")
        run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    return run_flow(retrain, flow_run=run, parameters=parameters, return_type="state")


@pytest.mark.parametrize(
    ("error", "kinds", "state_type"),
    [
        (StageFailed("The disk is full."), ["failed"], "FAILED"),
        (OverBudget("training.budget.wall_minutes is 5."), ["budget"], "FAILED"),
        (Killed("The training process was ended from outside."), ["crashed"], "CRASHED"),
        (KeyError("a bug"), ["failed"], "FAILED"),
        (Interrupted("Somebody stopped it."), [], "CANCELLED"),
    ],
    ids=["failed", "budget", "killed", "bug", "interrupted"],
)
def test_a_run_of_a_deployment_tells_how_it_failed(
    told: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kinds: list[str],
    state_type: str,
) -> None:
    state = ended_by(error, tmp_path, monkeypatch)
    assert state.type == state_type
    assert [it["data"]["kind"] for it in told] == kinds
    for it in told:
        assert it["type"] == "loraline.alert"
        assert it["data"]["name"] == "helpdesk"
        assert it["data"]["run_name"] == "helpdesk · manual"
        assert str(error.args[0]) in it["data"]["text"]
    outbox = tmp_path / "loraline-home" / "outbox"
    assert not list(outbox.glob("[0-9]*.json"))


def test_a_run_that_is_retried_tells_of_each_attempt_once(
    told: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow
    from prefect.states import Scheduled

    from flows.retrain import retrain

    state = ended_by(StageFailed("The disk is full."), tmp_path, monkeypatch)
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        # As the button does.
        client.set_flow_run_state(run_id, Scheduled(name="AwaitingRetry"), force=True)
        run = client.read_flow_run(run_id)
        again = run_flow(retrain, flow_run=run, parameters=run.parameters, return_type="state")
        assert client.read_flow_run(run_id).run_count == 2
    assert (state.type, again.type) == ("FAILED", "FAILED")
    assert [it["data"]["flow_run"] for it in told] == [str(run_id)] * 2


def ended_by(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The final state of a run of the deployment that the error stops."""
    from flows import retrain

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(retrain, "_retrained", fail)
    recipe = tmp_path / "support.yaml"
    recipe.write_text("name: helpdesk\n")
    return of_the_deployment(recipe)


@pytest.mark.parametrize(
    ("pid", "supervised", "elsewhere", "error", "kinds"),
    [
        (os.getpid(), True, "", Killed("Ended from outside."), []),
        # What the watchdog has nothing to do about, the run tells itself.
        (os.getpid(), True, "", StageFailed("The disk is full."), ["failed"]),
        # Nobody looks on: the stack was killed, it is one of `loraline ui`, or it is not this run's.
        (2**22 + 1, True, "", Killed("Ended from outside."), ["crashed"]),
        (os.getpid(), False, "", Killed("Ended from outside."), ["crashed"]),
        (os.getpid(), True, "/elsewhere", Killed("Ended from outside."), ["crashed"]),
    ],
    ids=["watched", "failed", "dead-stack", "ui", "other-server"],
)
def test_a_killed_training_is_left_to_a_watchdog_that_looks_on(
    told: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pid: int,
    supervised: bool,
    elsewhere: str,
    error: Exception,
    kinds: list[str],
) -> None:
    from prefect.settings import PREFECT_API_URL

    home().prepare()
    address = f"{PREFECT_API_URL.value()}{elsewhere}"
    write_stack(home(), {"prefect": Server(address, pid, supervised)})
    ended_by(error, tmp_path, monkeypatch)
    assert [it["data"]["kind"] for it in told] == kinds


def test_a_killed_training_on_a_terminal_raises_what_happened_and_alarms_nobody(
    told: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import retrain

    def fail(*_: Any) -> None:
        raise Killed("Ended from outside after step 4.")

    monkeypatch.setattr(retrain, "_retrained", fail)
    with pytest.raises(Killed, match="after step 4"):
        retrain.retrain(recipe=str(tmp_path / "support.yaml"))
    # Of a run that crashed the watchdog would tell.
    assert retrain.retrain(str(tmp_path / "support.yaml"), return_state=True).type == "FAILED"
    assert told == []


def test_who_runs_it_on_a_terminal_is_not_told_by_an_alert(
    told: list[dict[str, Any]], tmp_path: Path
) -> None:
    from flows.retrain import retrain

    state = retrain(recipe=str(tmp_path / "missing.yaml"), return_state=True)
    assert state.is_failed()
    assert told == []


def test_a_receiver_that_is_away_costs_no_run_and_gets_the_alert_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORALINE_WEBHOOKS", "http://127.0.0.1:9/canary-of-an-address")
    state = of_the_deployment(tmp_path / "missing.yaml")
    assert state.is_failed()
    assert "there is no such file" in str(state.message)
    (waiting,) = (tmp_path / "loraline-home" / "outbox").glob("[0-9]*.json")
    assert "canary" not in waiting.read_text()


def test_a_verdict_is_told_once_however_often_it_is_read_again(
    told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import run_alerts

    here = SimpleNamespace(id=uuid4(), name="small · nightly", deployment_id=uuid4())
    monkeypatch.setattr(run_alerts, "unattended", lambda: here)
    run: Any = SimpleNamespace(
        name="small · 60 rows · nightly",
        recipe=SimpleNamespace(name="small"),
        outcome=SimpleNamespace(reason="The gate refused the adapter.", mlflow_run_id="m1"),
    )
    for fingerprint in ("one", "one", "two"):
        run_alerts.tell_refusal(run, SimpleNamespace(fingerprint=fingerprint))  # type: ignore[arg-type]
    assert [it["data"]["kind"] for it in told] == ["refused", "refused"]
    assert told[0]["data"]["text"] == (
        "small · 60 rows · nightly: The gate refused the adapter. The champion stays."
    )
    assert told[0]["data"]["mlflow_run"] == "m1"
