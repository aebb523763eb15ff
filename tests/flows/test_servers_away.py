"""A server that is stopped for five minutes while a run is under way: the run finishes, and nothing is missing.

OUTAGE_SECONDS (default 300) is how long they are away.
"""

import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.running_stack import Stack, running_stack, until

OUTAGE_SECONDS = float(os.environ.get("OUTAGE_SECONDS", "300"))
STEPS = 60
ARTIFACTS = {
    "loraline-dataset",
    "loraline-tokenization",
    "loraline-training",
    "loraline-evaluation",
    "loraline-registration",
    "loraline-verdict",
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def stack(small: Any) -> Iterator[Stack]:
    """The servers' parts are stopped by their supervisor, which then starts them when it is told to."""
    with running_stack(small) as found:
        yield found


def away(stack: Stack, part: str) -> float:
    """Stop a server; `time.monotonic` when nothing listened any more."""
    port = int(stack.ports[1 if part == "prefect" else 3])
    stack.stop_part(part)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    return time.monotonic()


def back_after(stack: Stack, part: str, since: float) -> None:
    time.sleep(max(0.0, OUTAGE_SECONDS - (time.monotonic() - since)))
    stack.start_part(part)
    until(lambda: stack.status()["healthy"], 300)


def output_of(stack: Stack, stage: str, before: set[Path]) -> Path | None:
    new = set(stack.home.store.glob(f"{stage}/*/manifest.json")) - before
    return next(iter(new), None)


def test_a_run_ends_well_that_prefects_server_was_away_from(stack: Stack) -> None:
    """Log lines, artifacts and states of the stages that end meanwhile wait, and so does the run's own."""
    run = stack.start_long_run("prefect-away", STEPS)
    until(stack.checkpoints)
    stack.told.clear()
    before = set(stack.home.store.glob("evaluation/*/manifest.json"))
    since = away(stack, "prefect")
    # The training does not stop for that, nor does what follows it.
    until(lambda: output_of(stack, "evaluation", before), OUTAGE_SECONDS)
    assert time.monotonic() - since < OUTAGE_SECONDS
    back_after(stack, "prefect", since)

    state = stack.end_of(run, 900)
    assert state["type"] == "COMPLETED", state
    # Its process ends when the log lines are delivered that wait for the server.
    until(lambda: not stack.processes_of(run), 400)
    prefect_has_all_of(stack, run, STEPS)
    # Nobody was needed, so nobody is alarmed, and nothing was started a second time.
    time.sleep(45)
    assert [it["data"].get("kind") for it in stack.told if it["type"] == "loraline.alert"] == []
    (version,) = stack.tracker.client.search_model_versions("name = 'prefect-away'")
    assert "champion" in stack.tracker.client.get_registered_model("prefect-away").aliases
    assert version.status == "READY"


def test_a_run_that_was_pending_when_prefects_server_was_restarted_ends_well(stack: Stack) -> None:
    stack.told.clear()
    run = stack.start_long_run("pending-restart", 4)
    # A worker has taken it, and its process is still being started.
    until(lambda: stack.state(run) == "PENDING", 120)
    stack.kill_part("prefect")
    until(lambda: stack.status()["healthy"], 300)
    state = stack.end_of(run, 600)
    if state["type"] == "CRASHED":
        # Nobody could tell its process what to run; the watchdog says so and starts it once more.
        state = stack.end_of(stack.repetition_of(run), 600)
        assert stack.alerts_of(run) == ["crashed"]
    else:
        assert stack.alerts_of(run) == []
    assert state["type"] == "COMPLETED", state
    assert len(stack.tracker.client.search_model_versions("name = 'pending-restart'")) == 1
    assert not stack.is_trained("pending-restart")


def test_a_version_is_registered_once_that_mlflows_server_was_away_from(stack: Stack) -> None:
    before = set(stack.home.store.glob("evaluation/*/manifest.json"))
    run = stack.start_long_run("mlflow-away", STEPS, seed=7)
    until(stack.checkpoints)
    mlflow_run = stack.mlflow_run()
    # Judged, and about to be registered.
    until(lambda: output_of(stack, "evaluation", before), 400)
    since = away(stack, "mlflow")
    back_after(stack, "mlflow", since)
    assert stack.run(run)["state"]["type"] == "RUNNING"

    state = stack.end_of(run, 900)
    assert state["type"] == "COMPLETED", state
    mlflow_has_all_of(stack, mlflow_run, "mlflow-away", STEPS)
    assert stack.alerts_of(run) == []


def test_a_training_outlives_the_death_of_all_beside_it_and_schedules_go_on(stack: Stack) -> None:
    steps = 2 * STEPS
    run = stack.start_long_run("all-die", steps, seed=8)
    until(stack.checkpoints)
    mlflow_run = stack.mlflow_run()
    recipe = stack.write_recipe("soon")
    recipe.write_text(recipe.read_text() + 'schedule: {cron: "*/2 * * * *"}\n')
    assert stack.cli("deploy", str(recipe), **stack.environment).returncode == 0
    stack.told.clear()
    for name in ("prefect", "mlflow", "watchdog", "registry-worker"):
        restarts = stack.part(name)["restarts"]
        stack.kill_part(name)
        until(partial(has_more_restarts, stack, name, restarts), 120)
    # It trained all the while.
    assert stack.trainers_of(run)
    at = datetime.now(UTC)
    until(lambda: stack.status()["healthy"], 300)

    assert stack.end_of(run, 900)["type"] == "COMPLETED"
    until(lambda: not stack.processes_of(run), 400)
    prefect_has_all_of(stack, run, steps)
    mlflow_has_all_of(stack, mlflow_run, "all-die", steps)
    assert stack.alerts_of(run) == []
    due_since = {
        "expected_start_time": {"after_": at.isoformat()},
        "state": {"type": {"any_": ["COMPLETED"]}},
    }
    until(lambda: str(recipe) in map(recipe_of, stack.api.flow_runs(due_since)))
    until(lambda: stack.tracker.client.search_model_versions("name = 'soon'"))


def has_more_restarts(stack: Stack, name: str, restarts: int) -> bool:
    return bool(stack.part(name)["restarts"] > restarts)


def recipe_of(run: dict[str, Any]) -> str:
    return str(run["parameters"].get("recipe"))


def prefect_has_all_of(stack: Stack, run: str, steps: int) -> None:
    """Log lines, artifacts, and the final state of each task."""
    assert steps in stack.steps_of(run, steps)
    assert any("is version" in line for line in stack.log_of(run))
    shown = stack.api.ask(
        "POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}, "limit": 200}
    )
    assert {it["key"] for it in shown} >= ARTIFACTS
    where = {"task_runs": {"flow_run_id": {"any_": [run]}}}

    def ended() -> bool:
        tasks = stack.api.ask("POST", "/task_runs/filter", where)
        return len(tasks) >= 6 and {it["state"]["type"] for it in tasks} == {"COMPLETED"}

    # The server makes them of events, after a pause where it has many.
    until(ended, 120)


def mlflow_has_all_of(stack: Stack, mlflow_run: str, name: str, steps: int) -> None:
    """The version that is champion, the run's end, each metric and file."""
    client = stack.tracker.client
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert version.status == "READY"
    assert client.get_registered_model(name).aliases["champion"] == version.version
    assert client.get_run(mlflow_run).info.status == "FINISHED"
    assert version.run_id == mlflow_run
    points = client.get_metric_history(mlflow_run, "train.loss")
    assert sorted(point.step for point in points) == [1, *range(2, steps + 1, 2)]
    assert {"report", "recipe", "dataset"} <= {it.path for it in client.list_artifacts(mlflow_run)}
