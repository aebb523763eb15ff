"""The whole stack with its real servers: it starts, survives the death of each part, and leaves nothing."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.stack import leftovers, supervisor
from flows.stack.parts import POOLS, worker_name
from flows.stack.reaper import WORKER
from flows.stack.settings import read_settings
from flows.stack.stops import was_cut_off
from tasks.stack import running
from tests.running_stack import Stack, running_stack, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
PARTS = ("prefect", "mlflow", "worker", "registry-worker", "watchdog")


@pytest.fixture(scope="module")
def stack(small: Any) -> Iterator[Stack]:
    """A healthy stack; the recipe has had one successful run."""
    with running_stack(small) as found:
        yield found


def test_every_part_is_healthy_and_a_second_up_finds_them(stack: Stack) -> None:
    before = {p["name"]: p["pid"] for p in stack.status()["parts"]}
    assert set(before) == set(PARTS)
    again = stack.up()
    assert again["healthy"] is True
    assert {p["name"]: p["pid"] for p in again["parts"]} == before
    server = running(stack.home, "prefect")
    assert server is not None
    assert server.supervised
    settings = read_settings(stack.home)
    assert settings is not None
    assert settings.state_folder == stack.home.root


def test_nothing_of_the_stack_listens_beyond_loopback(stack: Stack) -> None:
    listening = [
        connection.laddr.ip
        for process in leftovers.processes(stack.home)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}


def test_both_databases_keep_a_write_ahead_log_and_prefects_server_waits_for_its_turn(
    stack: Stack,
) -> None:
    for path in (stack.home.prefect / "prefect.db", stack.home.mlflow / "mlflow.db"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",), path
    # What the server runs with, whoever set it.
    server = stack.api.ask("GET", "/admin/settings")["server"]
    assert server["database"]["timeout"] == 60
    assert server["concurrency"]["lease_storage"].endswith(".filesystem")


def test_schedules_fire_and_scheduled_runs_end(stack: Stack) -> None:
    # Prefect's scheduler plans in rounds of its own.
    until(lambda: stack.api.flow_runs({"state": {"type": {"any_": ["SCHEDULED"]}}}))
    completed = {"state": {"type": {"any_": ["COMPLETED"]}}}

    def in_pools() -> list[dict[str, Any]]:
        return [it for it in stack.api.flow_runs(completed) if it["work_pool_name"]]

    # By which a watchdog of another machine knows whose they are.
    ours = {worker_name(part) for part in POOLS}
    assert {it["labels"][WORKER] for it in until(in_pools)} <= ours


def test_of_twenty_runs_at_once_one_trains_and_no_database_is_locked(stack: Stack) -> None:
    recipe = stack.write_recipe("crowd")
    crowd = [
        subprocess.Popen(
            [str(stack.cli.python), "-P", "-m", "flows.cli", "run", str(recipe), "--json"],
            cwd=stack.cli.folder,
            env=stack.cli.environment(OMP_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(20)
    ]
    ends = [process.communicate(timeout=900) for process in crowd]
    assert [process.returncode for process in crowd] == [0] * 20, ends
    outcomes = sorted(json.loads(out)["outcome"] for out, _ in ends)
    assert outcomes.count("skipped") == 19, outcomes
    assert len(stack.tracker.client.search_model_versions("name = 'crowd'")) == 1
    for log in stack.home.logs.rglob("*.log*"):
        assert "database is locked" not in log.read_text(errors="replace"), log


@pytest.mark.parametrize("name", PARTS)
def test_a_killed_part_is_started_again_and_counted(stack: Stack, name: str) -> None:
    before = stack.part(name)
    stack.kill_part(name)
    until(lambda: stack.part(name)["restarts"] == before["restarts"] + 1)
    until(lambda: stack.status()["healthy"])
    assert stack.part(name)["pid"] != before["pid"]
    stack.schedules_go_on()


def test_the_schedule_of_a_recipe_goes_on_after_its_worker_was_killed(stack: Stack) -> None:
    recipe = stack.write_recipe("often")
    without = recipe.read_text()
    recipe.write_text(without + 'schedule: {cron: "* * * * *"}\n')
    assert stack.cli("deploy", str(recipe)).returncode == 0
    stack.kill_part("worker")
    stack.schedules_go_on("often")
    recipe.write_text(without)
    assert "retired" in stack.cli("deploy", str(recipe)).stdout
    assert stack.tracker.client.search_model_versions("name = 'often'")


def test_a_supervisor_that_hangs_is_told_by_a_status_that_does_not(stack: Stack) -> None:
    pid = stack.status()["supervisor_pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        found = stack.status()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert found["running"] is True
    assert found["healthy"] is False
    assert "lives and does not answer" in found["message"]
    until(lambda: stack.status()["healthy"])


def test_a_killed_supervisor_takes_its_parts_along_and_up_starts_them_again(stack: Stack) -> None:
    os.kill(stack.status()["supervisor_pid"], signal.SIGKILL)
    until(lambda: not leftovers.processes(stack.home), 60)
    found = stack.status()
    assert found["running"] is False
    assert "was killed" in found["message"]
    assert stack.up()["healthy"] is True
    stack.schedules_go_on()


def test_a_run_whose_worker_died_can_still_be_cancelled(stack: Stack) -> None:
    run = stack.start_long_run("cancelled", 5000)
    until(stack.checkpoints)
    stack.kill_part("worker")
    # It goes on without its worker, and is not taken for dead.
    time.sleep(5)
    assert run in leftovers.living_flow_runs()
    cancel(stack, run)
    until(lambda: run not in leftovers.living_flow_runs(), 30)
    # For a moment it is what its own process reported when that was ended.
    until(lambda: stack.state(run) == "CANCELLED", 60)
    assert not stack.repetitions_of(run)
    # Not in the way of those that count what lies there.
    shutil.rmtree(stack.home.work)
    until(lambda: stack.status()["healthy"])


def test_a_cancelled_run_is_gone_with_every_descendant_within_half_a_minute(stack: Stack) -> None:
    """As the button in Prefect's pages does it; a child in a session of its own survives Prefect's kill, and a
    trainer that hangs hears nothing."""
    run = stack.start_long_run("stopped", 5000)
    until(stack.checkpoints)
    (trainer,) = stack.trainers_of(run)
    # As one that the trainer starts, a server of its own for example: deaf, and in another session.
    script = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); "
        "time.sleep(600)"
    )
    descendant = subprocess.Popen(
        [sys.executable, "-c", script],
        env=trainer.environ(),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert descendant.stdout is not None
        descendant.stdout.readline()
        mlflow_run = stack.mlflow_run()
        stack.told.clear()
        trainer.suspend()
        began = time.monotonic()
        cancel(stack, run)
        descendant.wait(timeout=30)
        until(lambda: not stack.processes_of(run), 30 - (time.monotonic() - began))
        # A process that is ending shows no environment any more, and has its files for a moment.
        until(lambda: not stack.is_trained("stopped"), 30 - (time.monotonic() - began))
    finally:
        descendant.kill()
        descendant.communicate()
    until(lambda: stack.state(run) == "CANCELLED", 60)
    until(lambda: stack.tracker.client.get_run(mlflow_run).info.status == "KILLED", 60)
    # Somebody wanted it: nobody is alarmed, and nothing starts it again.
    time.sleep(20)
    assert stack.alerts_of(run) == []
    assert not stack.repetitions_of(run)
    shutil.rmtree(stack.home.work)


def cancel(stack: Stack, run: str) -> None:
    body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    stack.api.ask("POST", f"/flow_runs/{run}/set_state", body)


@pytest.mark.parametrize(("limit", "hangs"), [("timeout_minutes", False), ("stall_minutes", True)])
def test_a_training_beyond_its_limits_is_gone_and_told_once(
    stack: Stack, limit: str, hangs: bool
) -> None:
    name = limit.replace("_", "-")
    recipe = stack.write_recipe(name, max_steps="max_steps: 5000", seed=f"name: {name}\nseed: 11")
    text = recipe.read_text()
    recipe.write_text(text.replace("training:\n", f"training:\n  {limit}: 0.5\n"))
    stack.told.clear()
    run = stack.start("retrain", {"recipe": str(recipe)})
    (trainer,) = until(lambda: stack.trainers_of(run))
    began = time.monotonic()
    if hangs:
        until(lambda: stack.steps_of(run, 5000))
        trainer.suspend()
        began = time.monotonic()
    # Half a minute of patience, and half a minute for the end.
    until(lambda: not psutil.pid_exists(trainer.pid), 60 - (time.monotonic() - began))
    until(lambda: not stack.processes_of(run), 60)
    assert not stack.is_trained(name)
    ended = stack.end_of(run, 60)
    assert ended["type"] == "FAILED"
    assert f"training.{limit}" in ended["message"]
    until(lambda: stack.alerts_of(run) == ["failed"], 60)
    assert not stack.repetitions_of(run)


def test_a_machine_that_dies_in_a_training_ends_in_a_finished_one_and_one_alert(
    stack: Stack,
) -> None:
    first = stack.start_long_run("long", 60)
    until(lambda: len(stack.checkpoints()) > 1)
    mlflow_run = stack.mlflow_run()
    stack.told.clear()
    stack.kill_everything()

    stack.up()
    healthy, at = time.monotonic(), datetime.now(UTC)
    until(lambda: stack.state(first) == "CRASHED", 120)
    assert time.monotonic() - healthy < 120
    stack.schedules_go_on(since=at)
    assert stack.tracker.client.get_run(mlflow_run).info.status == "KILLED"
    again = stack.repetition_of(first)
    done = stack.end_of(again)
    assert done["type"] == "COMPLETED", done
    assert stack.alerts_of(first) == ["crashed"]
    # It goes on from the last complete checkpoint.
    steps = stack.steps_of(again, 60)
    assert steps
    assert min(steps) > 5


def test_down_leaves_no_process_no_port_and_no_name(stack: Stack) -> None:
    done = stack.cli("down", "--json")
    assert json.loads(done.stdout)["stopped"] is True
    assert not leftovers.processes(stack.home)
    assert not stack.home.stack_file.exists()
    for port in (int(stack.ports[1]), int(stack.ports[3])):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    assert not Path(stack.cli.environment()["HOME"], ".prefect").exists()


def test_a_backup_put_back_brings_runs_versions_and_schedules_back(stack: Stack) -> None:
    stack.cli("down")
    archive = stack.cli.folder / "loraline-backup.tgz"
    folder = ["-C", str(stack.home.root.parent)]
    subprocess.run(["tar", *folder, "-czf", archive, stack.home.root.name], check=True)
    shutil.rmtree(stack.home.root)
    subprocess.run(["tar", *folder, "-xzf", archive], check=True)
    stack.up()
    assert stack.tracker.client.search_model_versions("name = 'small'")
    assert stack.api.flow_runs({"state": {"type": {"any_": ["SCHEDULED"]}}})


def test_a_start_that_was_killed_half_way_is_finished_by_the_next_one(stack: Stack) -> None:
    stack.cli("down")
    with starting(stack) as process:
        until(lambda: supervisor.find(stack.home), 120)
        process.kill()
    assert not stack.home.stack_file.exists()
    assert stack.up()["healthy"] is True
    # Who reads this file would wait for ever without it, since the database is in use.
    server = running(stack.home, "prefect")
    assert server is not None
    assert server.supervised
    assert server.lives


@pytest.mark.parametrize("by", ["SIGTERM", "down"])
def test_in_the_foreground_it_stays_until_it_is_told_to_end(stack: Stack, by: str) -> None:
    stack.cli("down")
    began = now()
    with starting(stack, "--foreground") as process:
        assert process.stdout is not None
        # Its addresses are printed when everything is healthy.
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert [line.split()[0] for line in lines] == ["Prefect", "MLflow"]
        assert stack.status()["healthy"] is True
        if by == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        else:
            stack.cli("down")
        # Any other code would let systemd start it again.
        assert process.wait(timeout=180) == 0
    # What was being trained may be cut off so however often.
    assert was_cut_off(stack.home, {"start_time": began, "end_time": now()})
    assert not leftovers.processes(stack.home)


def now() -> str:
    return datetime.now(UTC).isoformat()


def starting(stack: Stack, *options: str) -> "subprocess.Popen[str]":
    """`loraline up`, under way."""
    return subprocess.Popen(
        [str(stack.cli.python), "-P", "-m", "flows.cli", "up", *options, *stack.ports],
        cwd=stack.cli.folder,
        env=stack.cli.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_who_waits_for_the_stack_sees_its_death_as_a_failure(stack: Stack) -> None:
    """systemd starts it again then."""
    stack.cli("down")
    with starting(stack, "--foreground") as process:
        assert process.stdout is not None
        assert [process.stdout.readline().split()[0] for _ in range(2)] == ["Prefect", "MLflow"]
        os.kill(stack.status()["supervisor_pid"], signal.SIGKILL)
        assert process.wait(timeout=180) == 1
    assert not leftovers.processes(stack.home)
