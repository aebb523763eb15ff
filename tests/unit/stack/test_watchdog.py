"""The watchdog: what is dead is closed once, what is busy is left alone, and somebody is told once."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from flows.stack import memory, supervisor
from flows.stack.abandoned import ATTEMPT_TAG, FLOW_RUN_TAG, Abandoned
from flows.stack.alerts import Alert, Alerts
from flows.stack.api import PrefectApi
from flows.stack.crashes import AFTER_STOP, AGAIN, Crashes, repetition_key
from flows.stack.hangs import PATIENCE_SECONDS, Hangs
from flows.stack.leftovers import FLOW_RUN, PART, STACK, living_flow_runs
from flows.stack.part_process import count_start, forget_starts, read_starts
from flows.stack.parts import POOLS, Part, worker_name
from flows.stack.reaper import (
    AWAY,
    CANCELLING_SECONDS,
    LOOK_SECONDS,
    ORPHAN_GRACE_SECONDS,
    PENDING_ANYWHERE_SECONDS,
    PENDING_CONTAINER_SECONDS,
    PENDING_SECONDS,
    RETURN_SECONDS,
    RUNNING_SECONDS,
    STRAY_SECONDS,
    Reaper,
)
from flows.stack.reaper import WORKER as WORKER_LABEL
from flows.stack.restarts import MANY, WINDOW_SECONDS, Restarts
from flows.stack.settings import folder
from flows.stack.silent_workers import SilentWorkers
from flows.stack.stops import NEWEST, note_stop, was_cut_off
from flows.watchdog import Check, watch
from tasks import run_lease
from tasks.errors import ServerAway, StageFailed
from tasks.files import write_json
from tasks.home import Home
from tasks.marked import WORKER
from tasks.promotion.notices import Notices, notices_of
from tasks.tracking import Tracker


class Clock:
    """Time that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def looked(reaper: Reaper, clock: Clock, *seconds: float) -> None:
    for step in seconds:
        clock.now += step
        reaper()


def test_a_running_run_without_a_process_is_crashed_within_a_minute(
    prefect: Any, state: Home
) -> None:
    clock, run = Clock(), prefect.add("RUNNING")
    reaper = Reaper(prefect.api, state, dict, clock=clock)
    looked(reaper, clock, 0, RUNNING_SECONDS - 1)
    assert run["state"]["type"] == "RUNNING"
    looked(reaper, clock, 2)
    assert run["state"]["type"] == "CRASHED"
    assert "process is gone" in run["state"]["message"]


def test_a_pending_run_of_a_dead_worker_is_crashed_within_two_minutes(
    prefect: Any, state: Home
) -> None:
    clock, run = Clock(), prefect.add("PENDING")
    reaper = Reaper(prefect.api, state, dict, clock=clock)
    looked(reaper, clock, 0, PENDING_SECONDS - 1)
    assert run["state"]["type"] == "PENDING"
    looked(reaper, clock, 2)
    assert run["state"]["type"] == "CRASHED"
    assert PENDING_SECONDS + 2 * LOOK_SECONDS < 120


def test_a_run_that_is_being_cancelled_ends_as_cancelled(prefect: Any, state: Home) -> None:
    clock, run = Clock(), prefect.add("CANCELLING")
    looked(Reaper(prefect.api, state, dict, clock=clock), clock, 0, RUNNING_SECONDS)
    assert run["state"]["type"] == "CANCELLED"


def test_a_process_that_is_busy_for_hours_keeps_its_run_alive(prefect: Any, state: Home) -> None:
    clock, run = Clock(), prefect.add("RUNNING")
    process = subprocess.Popen(
        [sys.executable, "-c", "while True: pass"], env={**os.environ, FLOW_RUN: run["id"]}
    )
    try:
        while run["id"] not in living_flow_runs():
            time.sleep(0.05)
        reaper = Reaper(prefect.api, state, clock=clock)
        looked(reaper, clock, 0, 600, 36_000)
        assert run["state"]["type"] == "RUNNING"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    looked(reaper, clock, 1, RUNNING_SECONDS)
    assert run["state"]["type"] == "CRASHED"


def test_a_run_on_another_machine_is_not_ours_to_end(prefect: Any, state: Home) -> None:
    clock, run = Clock(), prefect.add("RUNNING")
    prefect.workers.append({"name": "other-machine-worker", "status": "ONLINE"})
    reaper = Reaper(prefect.api, state, dict, clock=clock)
    looked(reaper, clock, 0, 1000)
    assert run["state"]["type"] == "RUNNING"
    # That machine is gone, too: only our own worker is left of those that could have it.
    prefect.workers[:] = [
        {"name": "other-machine-worker", "status": "OFFLINE"},
        {"name": worker_name("worker"), "status": "ONLINE"},
    ]
    looked(reaper, clock, 0, RUNNING_SECONDS)
    assert run["state"]["type"] == "CRASHED"


def test_a_network_that_is_away_between_two_machines_ends_no_training(
    prefect: Any, state: Home
) -> None:
    """Prefect takes a worker for gone a minute and a half after its last word; its training goes on."""
    clock, run = Clock(), prefect.add("RUNNING")
    other = {"name": "other-machine-worker", "status": "OFFLINE"}
    reaper = Reaper(prefect.api, state, dict, clock=clock)
    prefect.workers.append({**other, "last_heartbeat_time": silent_for(AWAY)})
    looked(reaper, clock, 0)
    # Long after this server began to answer.
    clock.now += RETURN_SECONDS
    prefect.workers[:] = [{**other, "last_heartbeat_time": silent_for(AWAY - timedelta(minutes=1))}]
    looked(reaper, clock, 0, RUNNING_SECONDS)
    assert run["state"]["type"] == "RUNNING"
    prefect.workers[:] = [{**other, "last_heartbeat_time": silent_for(AWAY)}]
    looked(reaper, clock, 0, RUNNING_SECONDS)
    assert run["state"]["type"] == "CRASHED"


@pytest.mark.parametrize("kind", ["RUNNING", "PENDING"])
@pytest.mark.parametrize(
    ("worker", "pool_type", "ended"),
    [
        ("second-worker", "process", True),
        ("third-worker", "process", False),
        # Nobody has heard of it for long, so Prefect has forgotten it; or there is no label.
        ("fourth-worker", "process", False),
        (worker_name("worker"), "process", True),
        # The process of what it launches is in a container.
        (worker_name("worker"), "docker", False),
    ],
)
def test_what_a_machine_left_is_ended_while_a_third_one_lives(
    prefect: Any, state: Home, kind: str, worker: str, pool_type: str, ended: bool
) -> None:
    clock, run = Clock(), prefect.add(kind, run_count=0, labels={WORKER_LABEL: worker})
    prefect.pool_type = pool_type
    reaper = Reaper(prefect.api, state, dict, clock=clock)
    looked(reaper, clock, 0, RETURN_SECONDS - 1)
    run["state"] = {"type": kind, "name": kind.capitalize(), "message": ""}
    silent = {"status": "OFFLINE", "last_heartbeat_time": silent_for(AWAY)}
    prefect.workers[:] = [
        {"name": "second-worker", **silent},
        {"name": "third-worker", "status": "ONLINE"},
    ]
    looked(reaper, clock, 1, PENDING_SECONDS)
    assert run["state"]["type"] == ("CRASHED" if ended else kind)


def silent_for(time: timedelta) -> str:
    return (datetime.now(UTC) - time).isoformat()


@pytest.mark.parametrize(("silent_days", "end"), [(0, "RUNNING"), (2, "CRASHED")])
def test_after_an_outage_other_machines_have_time_to_come_back(
    prefect: Any, state: Home, monkeypatch: pytest.MonkeyPatch, silent_days: int, end: str
) -> None:
    """A server that was away takes all workers for gone, whatever they train."""
    clock, run = Clock(), prefect.add("RUNNING")
    heard = silent_for(timedelta(days=silent_days) + 2 * AWAY)
    other = {"name": "other-machine-worker", "last_heartbeat_time": heard}
    prefect.workers.append({**other, "status": "ONLINE"})
    reaper = Reaper(prefect.api, state, dict, clock=clock)
    looked(reaper, clock, 0, RETURN_SECONDS)
    with monkeypatch.context() as away:
        away.setattr(PrefectApi, "flow_runs", refused)
        with pytest.raises(StageFailed):
            reaper()
    prefect.workers[:] = [{**other, "status": "OFFLINE"}]
    looked(reaper, clock, 300, RUNNING_SECONDS, RETURN_SECONDS - RUNNING_SECONDS - 1)
    assert run["state"]["type"] == end
    # It did not come back.
    looked(reaper, clock, 1, RUNNING_SECONDS)
    assert run["state"]["type"] == "CRASHED"


def refused(*_: Any) -> Any:
    raise StageFailed("Prefect does not answer")


@pytest.mark.parametrize(("pool_type", "end"), [("process", "CRASHED"), ("docker", "PENDING")])
def test_a_pending_run_of_a_machine_that_lost_power_ends_while_others_live(
    prefect: Any, state: Home, pool_type: str, end: str
) -> None:
    clock, run = Clock(), prefect.add("PENDING", run_count=0)
    prefect.pool_type = pool_type
    prefect.workers.append({"name": "other-machine-worker", "status": "ONLINE"})
    reaper = Reaper(prefect.api, state, dict, clock=clock)
    looked(reaper, clock, 0, PENDING_ANYWHERE_SECONDS - 1)
    assert run["state"]["type"] == "PENDING"
    # An image may take longer to arrive than a process to start.
    looked(reaper, clock, 1)
    assert run["state"]["type"] == end
    looked(reaper, clock, PENDING_CONTAINER_SECONDS - PENDING_ANYWHERE_SECONDS)
    assert run["state"]["type"] == "CRASHED"


@pytest.mark.parametrize("tried_again_elsewhere", [False, True])
def test_a_run_of_this_machine_is_ours_to_end_after_a_reboot(
    prefect: Any, state: Home, tried_again_elsewhere: bool
) -> None:
    clock, run = Clock(), prefect.add("PENDING", run_count=0)
    prefect.workers.append({"name": "other-machine-worker", "status": "ONLINE"})
    Reaper(prefect.api, state, lambda: {run["id"]: True}, clock=clock)()
    # It begins to run and dies with the machine before the next look; that of the others lives on.
    run |= {"state": {"type": "RUNNING", "name": "Running", "message": ""}, "run_count": 1}
    run["run_count"] += tried_again_elsewhere
    after = Reaper(prefect.api, state, dict, clock=clock)
    looked(after, clock, 0, RUNNING_SECONDS)
    assert run["state"]["type"] == ("RUNNING" if tried_again_elsewhere else "CRASHED")
    # What has ended is remembered no longer.
    if not tried_again_elsewhere:
        looked(after, clock, 5)
        assert run["id"] not in "".join(p.read_text() for p in state.root.rglob("*.json"))


@pytest.mark.parametrize("damage", ["", "{", "[1]", '"x"'])
def test_a_damaged_memory_of_runs_does_not_keep_the_reaper_from_looking(
    prefect: Any, state: Home, damage: str
) -> None:
    clock, run = Clock(), prefect.add("RUNNING")
    Reaper(prefect.api, state, lambda: {run["id"]: True}, clock=clock)()
    (memory,) = state.root.rglob("*this-machine.json")
    memory.write_text(damage)
    looked(Reaper(prefect.api, state, dict, clock=clock), clock, 0, RUNNING_SECONDS)
    assert run["state"]["type"] == "CRASHED"


def test_without_room_to_remember_runs_the_dead_are_ended_all_the_same(
    prefect: Any, state: Home
) -> None:
    clock, run, other = Clock(), prefect.add("RUNNING"), prefect.add("RUNNING")
    living = {run["id"]: True, other["id"]: True}
    look = Reaper(prefect.api, state, lambda: living, clock=clock)
    # No file can be renamed to where a folder is.
    memory = folder(state) / "runs-of-this-machine.json"
    memory.mkdir(parents=True)
    look()
    del living[run["id"]]
    looked(look, clock, 0, RUNNING_SECONDS)
    assert (run["state"]["type"], other["state"]["type"]) == ("CRASHED", "RUNNING")
    for draft in memory.parent.glob("runs-of-this-machine*"):
        draft.rmdir() if draft.is_dir() else draft.unlink()
    look()
    assert other["id"] in memory.read_text()


def test_a_cancelled_run_loses_its_processes_when_nobody_else_ends_them(
    prefect: Any, state: Home
) -> None:
    clock, run = Clock(), prefect.add("CANCELLING")
    ended: list[str] = []

    def end(run_id: str, grace_seconds: float) -> int:
        assert grace_seconds == 0
        ended.append(run_id)
        # As Prefect's engine reports a flow that gets SIGTERM.
        run["state"] = {"type": "CRASHED", "name": "Crashed", "message": "aborted"}
        return 1

    reaper = Reaper(prefect.api, state, lambda: {run["id"]: True}, end, clock)
    looked(reaper, clock, 0, CANCELLING_SECONDS - 1)
    assert not ended
    looked(reaper, clock, 1)
    assert ended == [run["id"]]
    assert run["state"]["type"] == "CANCELLED"


@pytest.mark.parametrize("cancelled_after", [0, 10, 17, 24, 100])
def test_what_is_deaf_of_a_cancelled_run_is_gone_within_half_a_minute_though_looks_are_slow(
    prefect: Any, state: Home, cancelled_after: float
) -> None:
    """Its worker may say at any moment that it is cancelled, also while something of it lives."""
    clock, run = Clock(), prefect.add("CANCELLING")
    began, gone = clock.now, 0.0

    def end(run_id: str, grace_seconds: float) -> int:
        nonlocal gone
        clock.now += grace_seconds
        gone = clock.now - began
        return 1

    reaper = Reaper(prefect.api, state, lambda: {run["id"]: True}, end, clock)
    while not gone:
        # The first look came just before it was told to end, and each takes three seconds.
        clock.now += LOOK_SECONDS + 3
        if clock.now - began >= cancelled_after:
            run["state"]["type"] = "CANCELLED"
        reaper()
    # A trainer that hears it has had time for its step and a checkpoint.
    assert 12 < gone < 30


@pytest.mark.parametrize("kind", ["CANCELLED", "CRASHED", "COMPLETED", "FAILED"])
def test_what_a_cancelled_run_left_is_ended_sooner_than_what_may_still_be_closing(
    prefect: Any, state: Home, kind: str
) -> None:
    clock, run, patience = Clock(), prefect.add(kind), STRAY_SECONDS[kind]
    ended: list[str] = []

    def end(run_id: str, grace_seconds: float) -> int:
        ended.append(run_id)
        return 1

    reaper = Reaper(prefect.api, state, lambda: {run["id"]: True}, end, clock)
    looked(reaper, clock, 0, patience - 1)
    assert not ended
    looked(reaper, clock, 1)
    assert ended == [run["id"]]
    # Prefect's client may sleep for 256 s, give or take a fifth, before it finds its server back.
    assert STRAY_SECONDS["COMPLETED"] > 1.2 * 256


@pytest.mark.parametrize("restarted", [False, True])
def test_a_run_that_is_deleted_while_it_runs_is_ended_as_a_cancelled_one(
    prefect: Any, state: Home, restarted: bool
) -> None:
    clock, run, others = Clock(), prefect.add("RUNNING"), str(uuid4())
    ended: list[str] = []
    living = {run["id"]: True, others: True}

    def end(run_id: str, grace_seconds: float) -> int:
        ended.append(run_id)
        living.pop(run_id)
        return 1

    def reaper() -> Reaper:
        return Reaper(prefect.api, state, lambda: living, end, clock)

    look = reaper()
    look()
    del prefect.runs[run["id"]]
    look()
    if restarted:
        look = reaper()
    looked(look, clock, 0, 4)
    assert not ended
    looked(look, clock, 1, 3600)
    # The other run is of a server that nobody asked.
    assert ended == [run["id"]]


def test_a_child_in_a_session_of_its_own_does_not_outlive_its_run(
    prefect: Any, state: Home
) -> None:
    clock, run = Clock(), prefect.add("CRASHED")
    busy = prefect.add("RUNNING")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"],
            env={**os.environ, FLOW_RUN: identity},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        # The last one belongs to a run of some other server.
        for identity in (run["id"], busy["id"], "0" * 36)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        reaper = Reaper(prefect.api, state, clock=clock)
        looked(reaper, clock, 0, STRAY_SECONDS["CRASHED"] - 1)
        assert processes[0].poll() is None
        looked(reaper, clock, 2)
        processes[0].wait(timeout=10)
        looked(reaper, clock, 100)
        assert [p.poll() for p in processes[1:]] == [None, None]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(("kind", "end"), [("RUNNING", "CRASHED"), ("CANCELLING", "CANCELLED")])
def test_what_a_worker_left_in_a_session_of_its_own_does_not_keep_a_run_alive(
    prefect: Any, state: Home, kind: str, end: str
) -> None:
    """Flow, trainer and the trainer's watcher were killed at once: nobody else ends what is left."""
    clock, run = Clock(), prefect.add("RUNNING")
    flow, orphan = (
        subprocess.Popen(
            [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"],
            env={**os.environ, FLOW_RUN: run["id"], **marks},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        for marks in ({}, {WORKER: "1"})
    )
    try:
        for process in (flow, orphan):
            assert process.stdout is not None
            process.stdout.readline()
        reaper = Reaper(prefect.api, state, clock=clock)
        looked(reaper, clock, 0, 3600)
        flow.kill()
        flow.wait()
        run["state"]["type"] = kind
        patience = RUNNING_SECONDS if kind == "RUNNING" else CANCELLING_SECONDS
        looked(reaper, clock, 0, patience - 1)
        assert orphan.poll() is None
        assert run["state"]["type"] == kind
        looked(reaper, clock, 2)
        assert run["state"]["type"] == end
        # It has ended before the run has, which another one repeats at once.
        assert orphan.poll() is not None
        assert ORPHAN_GRACE_SECONDS + RUNNING_SECONDS + 2 * LOOK_SECONDS < 120
    finally:
        for process in (flow, orphan):
            process.kill()
            process.communicate()


def test_a_server_that_lives_and_does_not_answer_is_ended_and_told(
    prefect: Any, state: Home, alerts: Alerts
) -> None:
    hung = Part("mlflow", "MLflow server", "mlflow", health="http://127.0.0.1:9/health")
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env={**os.environ, STACK: str(state.root), PART: "mlflow"},
    )
    try:
        count_start(state, "mlflow")
        clock = Clock()
        look = Hangs(state, [hung], alerts, clock)
        look()
        clock.now += PATIENCE_SECONDS - 1
        # It was started again meanwhile: its time begins anew.
        count_start(state, "mlflow")
        look()
        clock.now += 2
        look()
        assert process.poll() is None
        clock.now += PATIENCE_SECONDS
        look()
        process.wait(timeout=10)
    finally:
        process.kill()
        process.wait()
    alerts.deliver()
    assert [e["payload"]["kind"] for e in prefect.events] == ["part-hung"]


def test_a_worker_that_lives_and_is_not_heard_of_is_told_once(
    prefect: Any, state: Home, alerts: Alerts
) -> None:
    clock = Clock()
    workers = {name: {"name": worker_name(name), "status": "OFFLINE"} for name in POOLS}
    prefect.workers += workers.values()
    for name in POOLS:
        count_start(state, name)
    # The other one was stopped by a person.
    look = SilentWorkers(prefect.api, state, alerts, clock, lambda _: {"prefect", "worker"})
    for seconds in (0, PATIENCE_SECONDS - 1):
        clock.now += seconds
        look()
    alerts.deliver()
    assert prefect.events == []
    for _ in range(3):
        clock.now += 30
        look()
    alerts.deliver()
    (event,) = prefect.events
    assert (event["payload"]["kind"], event["payload"]["name"]) == ("worker-silent", "worker")
    assert "has not heard of it for 5 minutes" in event["payload"]["text"]


def test_a_worker_without_its_pool_is_not_heard_of_and_keeps_no_other_from_it(
    prefect: Any, state: Home, alerts: Alerts
) -> None:
    clock = Clock()
    for name in POOLS:
        count_start(state, name)
    prefect.workers += [{"name": worker_name(name), "status": "ONLINE"} for name in POOLS]
    prefect.deleted_pools.add(POOLS["worker"])
    look = SilentWorkers(prefect.api, state, alerts, clock, lambda _: set(POOLS))
    for _ in range(2):
        look()
        clock.now += PATIENCE_SECONDS
    alerts.deliver()
    assert [event["payload"]["name"] for event in prefect.events] == ["worker"]


@pytest.mark.parametrize("comfort", ["heard", "started again", "server away"])
def test_a_worker_gets_its_time_anew(
    prefect: Any, state: Home, alerts: Alerts, comfort: str
) -> None:
    clock, mine = Clock(), {"name": worker_name("worker"), "status": "OFFLINE"}
    prefect.workers.append(mine)
    count_start(state, "worker")
    look = SilentWorkers(prefect.api, state, alerts, clock, lambda _: {"worker"})
    look()
    clock.now += PATIENCE_SECONDS - 1
    if comfort == "heard":
        mine["status"] = "ONLINE"
        look()
        mine["status"] = "OFFLINE"
    elif comfort == "started again":
        count_start(state, "worker")
    else:
        look.api = PrefectApi("http://127.0.0.1:9/api")
        with pytest.raises(StageFailed):
            look()
        look.api = prefect.api
    look()
    clock.now += PATIENCE_SECONDS - 1
    look()
    alerts.deliver()
    assert prefect.events == []
    clock.now += 1
    look()
    alerts.deliver()
    assert len(prefect.events) == 1


def test_a_run_in_a_container_is_not_looked_for_among_processes(prefect: Any, state: Home) -> None:
    prefect.pool_type = "docker"
    clock, run = Clock(), prefect.add("RUNNING")
    looked(Reaper(prefect.api, state, dict, clock=clock), clock, 0, 1000)
    assert run["state"]["type"] == "RUNNING"


def test_a_run_of_another_pool_is_left_alone(prefect: Any, state: Home) -> None:
    clock, run = Clock(), prefect.add("RUNNING", work_pool_name="kubernetes")
    looked(Reaper(prefect.api, state, dict, clock=clock), clock, 0, 1000)
    assert run["state"]["type"] == "RUNNING"


@pytest.mark.parametrize("pool", POOLS.values())
def test_a_pool_that_somebody_deleted_keeps_no_dead_run_of_the_other_alive(
    prefect: Any, state: Home, pool: str
) -> None:
    prefect.deleted_pools.add(pool)
    clock, runs = Clock(), {it: prefect.add("RUNNING", work_pool_name=it) for it in POOLS.values()}
    looked(Reaper(prefect.api, state, dict, clock=clock), clock, 0, RUNNING_SECONDS)
    found = {name: run["state"]["type"] for name, run in runs.items()}
    assert found == {it: "RUNNING" if it == pool else "CRASHED" for it in POOLS.values()}


def test_flows_inside_a_dead_run_end_with_it(prefect: Any, state: Home) -> None:
    clock, run = Clock(), prefect.add("RUNNING")
    inner = prefect.add("RUNNING", work_pool_name=None, parent=run["id"])
    looked(Reaper(prefect.api, state, dict, clock=clock), clock, 0, RUNNING_SECONDS)
    assert inner["state"]["type"] == "CRASHED"


@pytest.mark.long
def test_a_killed_command_line_run_is_closed_in_mlflow_and_in_prefect(
    prefect: Any, state: Home
) -> None:
    run = prefect.add("RUNNING", work_pool_name=None)
    script = (
        "import os, signal, sys; from pathlib import Path; from tasks.home import Home\n"
        "from tasks.tracking import Tracker\n"
        "tracker = Tracker(Home(Path(sys.argv[1])))\n"
        "tag = {'loraline.prefect_flow_run_id': sys.argv[2]}\n"
        "print(tracker.open_run('small', 'killed', tags=tag, params={}), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(state.root), run["id"]], capture_output=True, text=True
    )
    run_id = done.stdout.strip()
    assert done.returncode == -signal.SIGKILL, done.stderr
    look = Abandoned(prefect.api, state, set)
    look()
    assert Tracker(state).client.get_run(run_id).info.status == "KILLED"
    assert run["state"]["type"] == "CRASHED"
    assert not list(state.locks.glob("mlflow-run-*"))
    # A second look finds nothing more to do.
    run["state"] = {"type": "RUNNING", "name": "Running", "message": ""}
    look()
    assert run["state"]["type"] == "RUNNING"


def test_a_command_line_run_that_was_killed_before_it_trained_is_closed(
    prefect: Any, state: Home
) -> None:
    killed, living, stopped = (prefect.add("RUNNING", work_pool_name=None) for _ in range(3))
    script = (
        "import os, signal, sys; from pathlib import Path; from tasks.home import Home\n"
        "from tasks import run_lease\n"
        "lease = run_lease.take(Home(Path(sys.argv[1])), sys.argv[2] + '.1', 'flow-run')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for run in (killed, stopped):
        subprocess.run([sys.executable, "-c", script, str(state.root), run["id"]])
    run_lease.note_stopped(state, run_lease.of_attempt(stopped["id"], 1))
    name = run_lease.of_attempt(living["id"], 1)
    lease = run_lease.take(state, name, "flow-run")
    Abandoned(prefect.api, state, set)()
    states = [run["state"]["type"] for run in (killed, living, stopped)]
    assert states == ["CRASHED", "RUNNING", "CANCELLED"]
    assert [path.stem for path in state.locks.glob("*")] == [f"flow-run-{name}"]
    run_lease.give_back(state, name, lease, "flow-run")


@pytest.mark.parametrize("kind", ["flow-run", "mlflow-run"])
def test_the_end_of_one_attempt_ends_no_later_one(
    prefect: Any, state: Home, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As after a node was drained: a container elsewhere is at the next attempt of the run already."""
    pending = prefect.add("PENDING", run_count=1)
    running = prefect.add("RUNNING", run_count=2)
    same = prefect.add("RUNNING", run_count=1)
    names = {f"{run['id']}.1": run for run in (pending, running, same)}
    monkeypatch.setattr(
        run_lease, "abandoned", lambda _, it="mlflow-run": names if it == kind else []
    )

    def closed(_: Tracker, name: str) -> dict[str, str]:
        return {FLOW_RUN_TAG: names[name]["id"], ATTEMPT_TAG: "1"}

    monkeypatch.setattr(Tracker, "close_abandoned", closed)
    Abandoned(prefect.api, state, set)()
    states = [run["state"]["type"] for run in (pending, running, same)]
    assert states == ["PENDING", "RUNNING", "CRASHED"]


def test_a_run_that_cannot_be_closed_in_mlflow_keeps_no_other_from_it(
    prefect: Any, state: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody deletes one in MLflow's pages while it runs, another is refused, and all are killed."""
    tracker, runs = Tracker(state), [prefect.add("RUNNING", work_pool_name=None) for _ in range(4)]
    ids = []
    for run in runs:
        tags = {"loraline.prefect_flow_run_id": run["id"]}
        ids.append(tracker.open_run("small", "killed", tags=tags, params={}))
    monkeypatch.setattr(
        run_lease,
        "abandoned",
        lambda _, kind="mlflow-run": sorted(ids) if kind == "mlflow-run" else [],
    )
    deleted, refused_one, *others = sorted(ids)
    tracker.client.delete_run(deleted)
    close = Tracker.close_abandoned

    def closed(self: Tracker, run_id: str) -> dict[str, str]:
        if run_id == refused_one:
            raise StageFailed("MLflow refuses it")
        return close(self, run_id)

    monkeypatch.setattr(Tracker, "close_abandoned", closed)
    with pytest.raises(StageFailed, match="MLflow refuses it"):
        Abandoned(prefect.api, state, set)()
    status = {it: tracker.client.get_run(it).info.status for it in ids}
    assert [status[it] for it in others] == ["KILLED", "KILLED"]
    # That of the deleted one is over all the same.
    assert sorted(run["state"]["type"] for run in runs) == ["CRASHED"] * 3 + ["RUNNING"]


def test_a_run_that_mlflow_made_without_its_answer_arriving_is_closed(
    prefect: Any, state: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, made = Tracker(state), []
    create = tracker.client.create_run

    def carried_out(*args: Any, **kwargs: Any) -> None:
        made.append(create(*args, **kwargs).info.run_id)
        raise ConnectionError("Remote end closed connection without response")

    with monkeypatch.context() as away:
        away.setattr(tracker.client, "create_run", carried_out)
        with pytest.raises(ServerAway):
            tracker.open_run("small", "lost", tags={}, params={})
    Abandoned(prefect.api, state, set)()
    (lost,) = made
    assert tracker.client.get_run(lost).info.status == "KILLED"
    assert list(state.locks.glob("opening-*")) == []


def test_one_crash_is_one_alert_and_one_repetition_over_restarts(
    prefect: Any, state: Home, alerts: Alerts
) -> None:
    prefect.deployments.append({"id": "d", "name": "retrain"})
    run = prefect.add(
        "CRASHED", deployment_id="d", parameters={"recipe": "recipes/a.yaml"}, tags=["nightly"]
    )
    for _ in range(2):
        Crashes(prefect.api, alerts)()
    alerts.deliver()
    # The watchdog dies and is started again.
    again = Alerts(
        state.root / "alerts.json", notices_of(state, prefect_api=prefect.url, environ={})
    )
    Crashes(prefect.api, again)()
    again.deliver()
    assert [event["event"] for event in prefect.events] == ["loraline.alert"]
    payload = prefect.events[0]["payload"]
    assert payload["kind"] == "crashed"
    assert payload["flow_run"] == run["id"]
    (created,) = prefect.created.values()
    assert created["parameters"] == {"recipe": "recipes/a.yaml"}
    assert created["tags"] == ["nightly", AGAIN]


def test_a_repetition_that_crashes_is_told_and_not_repeated(prefect: Any, alerts: Alerts) -> None:
    prefect.deployments.append({"id": "d", "name": "retrain"})
    prefect.add("CRASHED", deployment_id="d", tags=[AGAIN])
    prefect.add("FAILED", deployment_id="d")
    Crashes(prefect.api, alerts)()
    alerts.deliver()
    assert sorted(e["payload"]["kind"] for e in prefect.events) == ["crashed", "failed"]
    assert not prefect.created


def test_a_training_that_stops_of_the_stack_cut_off_goes_on_however_often(
    prefect: Any, state: Home, alerts: Alerts, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefect.deployments.append({"id": "d", "name": "retrain"})
    look = Crashes(prefect.api, alerts, cut_off=partial(was_cut_off, state))
    at_once = SimpleNamespace(terminate=lambda: None, wait=lambda timeout: None)
    monkeypatch.setattr(supervisor, "find", lambda _: at_once)
    tags = ["nightly"]

    def ended(*, by_a_stop: bool) -> list[str] | None:
        """The tags of the run that goes on where one with `tags` ended; None where none does."""
        run = prefect.add("RUNNING", deployment_id="d", tags=tags)
        if by_a_stop:
            # As `loraline down` and systemd do.
            supervisor.stop(state, [])
        run["state"]["type"], run["end_time"] = "CRASHED", datetime.now(UTC).isoformat()
        look()
        created = prefect.created.get(repetition_key(run["id"]))
        return created and created["tags"]

    for _ in range(3):
        again = ended(by_a_stop=True)
        assert again is not None
        assert again[:2] == ["nightly", AGAIN]
        tags = again
    # What is its own fault, or the machine's, is repeated once all the same, and no more.
    again = ended(by_a_stop=False)
    assert again == ["nightly", AGAIN]
    tags = again
    assert ended(by_a_stop=False) is None
    alerts.deliver()
    texts = [event["payload"]["text"] for event in prefect.events]
    assert ["The stack was stopped while it ran" in it for it in texts] == [True] * 3 + [False] * 2


@pytest.mark.parametrize("spent", [True, False])
def test_a_stop_neither_spends_nor_gives_back_the_repetition_of_a_crash(
    prefect: Any, state: Home, alerts: Alerts, spent: bool
) -> None:
    prefect.deployments.append({"id": "d", "name": "retrain"})
    look = Crashes(prefect.api, alerts, cut_off=lambda _: True)
    prefect.add("CRASHED", deployment_id="d", tags=[AGAIN] if spent else [])
    look()
    (created,) = prefect.created.values()
    assert created["tags"] == ([AGAIN] if spent else [AGAIN, AFTER_STOP])


@pytest.mark.parametrize(
    ("start", "due", "end", "cut"),
    [(-2, -3, 2, True), (1, -3, 2, False), (-3, -3, -1, False), (None, -3, 2, True)],
    ids=["under way", "later", "earlier", "pending"],
)
def test_a_stop_cuts_off_what_was_under_way(
    state: Home, start: int | None, due: int, end: int, cut: bool
) -> None:
    def at(minutes: int | None) -> str | None:
        return minutes and (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()

    run = {"start_time": at(start), "expected_start_time": at(due), "end_time": at(end)}
    assert not was_cut_off(state, run)
    for _ in range(2 * NEWEST):
        note_stop(state)
    assert was_cut_off(state, run) is cut
    (memory,) = state.root.rglob("stops.json")
    assert len(json.loads(memory.read_text())) == NEWEST
    memory.write_text("{")
    assert not was_cut_off(state, run)


def test_a_failure_that_the_run_told_itself_is_not_told_again(
    prefect: Any, state: Home, alerts: Alerts
) -> None:
    prefect.deployments.append({"id": "d", "name": "retrain"})
    run = prefect.add("FAILED", deployment_id="d", name="small · nightly")
    notices = notices_of(state, prefect_api=prefect.url, environ={})
    # Another process, while the watchdog lives.
    theirs = Alerts(state.root / "alerts.json", notices)
    assert theirs.tell(Alert("budget", run["id"], "small", "It was stopped for its budget."))
    Crashes(prefect.api, alerts)()
    alerts.deliver()
    assert [e["payload"]["kind"] for e in prefect.events] == ["budget"]
    # And the other way round: the memory is one.
    other = prefect.add("FAILED", deployment_id="d")
    Crashes(prefect.api, alerts)()
    assert not theirs.tell(Alert("failed", other["id"], "small", "It failed."))


def test_two_processes_that_tell_the_same_at_once_tell_it_once(state: Home, prefect: Any) -> None:
    notices = notices_of(state, prefect_api=prefect.url, environ={})
    found: list[bool] = []

    def tell() -> None:
        alerts = Alerts(state.root / "alerts.json", notices)
        found.extend(alerts.tell(Alert("refused", f"r{n}", "small", "x")) for n in range(20))

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found) == 20
    assert len(list((state.root / "outbox").glob("[0-9]*.json"))) == 20


def test_a_command_that_failed_on_a_terminal_is_no_news_and_one_that_was_killed_is(
    prefect: Any, alerts: Alerts
) -> None:
    prefect.add("FAILED")
    killed = prefect.add("CRASHED")
    Crashes(prefect.api, alerts)()
    alerts.deliver()
    assert [e["payload"]["flow_run"] for e in prefect.events] == [killed["id"]]


def test_an_alert_of_a_crash_says_whether_the_retraining_goes_on(
    prefect: Any, alerts: Alerts
) -> None:
    prefect.deployments.append({"id": "d", "name": "retrain"})
    prefect.add("CRASHED", deployment_id="d")
    prefect.add("CRASHED", deployment_id="d", tags=[AGAIN])
    Crashes(prefect.api, alerts)()
    alerts.deliver()
    first, second = (e["payload"]["text"] for e in prefect.events)
    assert "goes on from its last complete checkpoint" in first
    assert "is not started once more" in second


def test_a_small_run_that_never_began_is_no_news(prefect: Any, alerts: Alerts) -> None:
    prefect.deployments += [
        {"id": "d", "name": "reconcile-registry"},
        {"id": "r", "name": "retrain"},
    ]
    prefect.add("CRASHED", deployment_id="d", start_time=None)
    retraining = prefect.add("CRASHED", deployment_id="r", start_time=None)
    Crashes(prefect.api, alerts)()
    alerts.deliver()
    assert [e["payload"]["flow_run"] for e in prefect.events] == [retraining["id"]]


def test_a_clock_that_was_ahead_for_a_while_silences_nothing_afterwards(
    prefect: Any, state: Home
) -> None:
    prefect.deployments.append({"id": "d", "name": "retrain"})
    notices = notices_of(state, prefect_api=prefect.url, environ={})
    memory, ahead = state.root / "alerts.json", datetime.now(UTC) + timedelta(days=365)
    Alerts(memory, notices, now=ahead)
    run = prefect.add("CRASHED", deployment_id="d", parameters={"recipe": "recipes/a.yaml"})
    alerts = Alerts(memory, notices)
    assert alerts.since == ahead
    Crashes(prefect.api, alerts)()
    assert alerts.is_told("crashed", run["id"])
    assert len(prefect.created) == 1
    assert Alerts(memory, notices).since < datetime.now(UTC)


def test_ends_from_before_the_first_watchdog_are_no_news(prefect: Any, state: Home) -> None:
    prefect.add("CRASHED")
    fresh = Alerts(state.root / "a.json", notices_of(state, prefect_api=prefect.url, environ={}))
    Crashes(prefect.api, fresh)()
    fresh.deliver()
    assert not prefect.events


def test_an_alert_waits_for_a_receiver_that_is_away(state: Home, prefect: Any) -> None:
    away = notices_of(state, prefect_api="http://127.0.0.1:9/api", environ={})
    alerts = Alerts(state.root / "alerts.json", away)
    assert alerts.tell(Alert("crashed", "one", "small", "It crashed."))
    assert not alerts.tell(Alert("crashed", "one", "small", "It crashed."))
    assert alerts.deliver() == 1
    back = notices_of(state, prefect_api=prefect.url, environ={})
    assert Alerts(state.root / "alerts.json", back).deliver() == 0
    assert len(prefect.events) == 1


def test_a_disk_without_room_for_the_outbox_keeps_no_alert_back(
    state: Home, prefect: Any, alerts: Alerts, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.promotion import notices

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    waiting = Alert("crashed", "before", "small", "It crashed before the disk was full.")
    alerts.tell(waiting)
    monkeypatch.setattr(notices, "write_json", full)
    for _ in range(3):
        alerts.tell(Alert("failed", "now", "small", "The disk is full."))
        alerts.deliver()
    told = [event["payload"]["text"] for event in prefect.events]
    assert sorted(told) == ["It crashed before the disk was full.", "The disk is full."]
    away = Alerts(
        state.root / "other.json",
        notices_of(state, prefect_api="http://127.0.0.1:9/api", environ={}),
    )
    with pytest.raises(OSError, match="No space left"):
        away.tell(waiting)
    assert not away.is_told(waiting.kind, waiting.subject)


def test_on_a_full_disk_with_a_receiver_away_the_others_hear_of_each_crash_once(
    state: Home, prefect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.promotion import notices

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    clock = Clock()
    gone = {"LORALINE_WEBHOOKS": "http://127.0.0.1:9/gone"}
    receivers = notices_of(state, prefect_api=prefect.url, environ=gone)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    alerts = Alerts(state.root / "alerts.json", receivers, now=yesterday, clock=clock)
    room = write_json
    for module in (notices, memory):
        monkeypatch.setattr(module, "write_json", full)
    look = Crashes(prefect.api, alerts)
    first, second = prefect.add("CRASHED"), prefect.add("CRASHED")
    for _ in range(5):
        look()
        alerts.deliver()
        clock.now += 900
    told = [event["payload"]["flow_run"] for event in prefect.events]
    assert sorted(told) == sorted([first["id"], second["id"]])
    # With room on the disk the one that was away gets both, nobody else does, and a restart changes nothing.
    for module in (notices, memory):
        monkeypatch.setattr(module, "write_json", room)
    assert alerts.deliver() == 2
    found = [json.loads(it.read_text()) for it in (state.root / "outbox").glob("[0-9]*.json")]
    assert [len(it["waiting"]) for it in found] == [1, 1]
    alerts.look_from(yesterday + timedelta(hours=2))
    Crashes(prefect.api, Alerts(state.root / "alerts.json", receivers))()
    assert len(list((state.root / "outbox").glob("[0-9]*.json"))) == 2
    assert len(prefect.events) == 2


def test_a_receiver_that_is_away_is_asked_less_and_less_often(
    state: Home, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    away = notices_of(state, prefect_api="http://127.0.0.1:9/api", environ={})
    alerts = Alerts(state.root / "alerts.json", away, clock=clock)
    alerts.tell(Alert("crashed", "one", "small", "It crashed."))
    for _ in range(240):
        alerts.deliver()
        clock.now += 15
    an_hour = len(caplog.records)
    assert 4 <= an_hour <= 10
    # Something new is tried at once.
    alerts.tell(Alert("crashed", "two", "small", "It crashed."))
    alerts.deliver()
    assert len(caplog.records) > an_hour


def test_a_part_that_dies_again_and_again_is_told(
    prefect: Any, state: Home, alerts: Alerts
) -> None:
    clock = Clock()
    look = Restarts(state, alerts, clock)
    count_start(state, "mlflow")
    look()
    for _ in range(MANY):
        count_start(state, "mlflow")
    assert (starts := read_starts(state, "mlflow")) is not None
    assert starts.count == MANY + 1
    clock.now += 60
    look()
    look()
    alerts.deliver()
    assert [e["payload"]["kind"] for e in prefect.events] == ["part-restarts"]
    # For hours: it is told once, and once more after it was well for an hour.
    for _ in range(100):
        clock.now += 240
        count_start(state, "mlflow")
        look()
    alerts.deliver()
    assert len(prefect.events) == 1
    look = Restarts(state, alerts, clock)
    look()
    clock.now += WINDOW_SECONDS + 1
    (file,) = (folder(state) / "starts").glob("mlflow*")
    an_hour_ago = datetime.now(UTC) - timedelta(seconds=WINDOW_SECONDS + 1)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"since": an_hour_ago.isoformat()}))
    look()
    for _ in range(MANY):
        count_start(state, "mlflow")
    look()
    alerts.deliver()
    assert len(prefect.events) == 2


def test_a_watchdog_that_dies_again_and_again_is_told_by_its_next_life(
    prefect: Any, state: Home, alerts: Alerts
) -> None:
    for life in range(MANY + 3):
        count_start(state, "watchdog")
        look = Restarts(state, alerts)
        look()
        look()
        alerts.deliver()
        assert len(prefect.events) == int(life >= MANY)
    (event,) = prefect.events
    assert (event["payload"]["kind"], event["payload"]["name"]) == ("part-restarts", "watchdog")
    # A stack that is begun anew by a person counts from nothing.
    forget_starts(state)
    count_start(state, "watchdog")
    assert Restarts(state, alerts)._lives == 1


def test_a_check_that_fails_neither_ends_the_watchdog_nor_fills_its_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[str] = []

    def away() -> None:
        looks.append("away")
        raise StageFailed("Prefect does not answer")

    def broken() -> None:
        raise KeyError("a bug")

    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    checks = [
        Check("a", 10, away),
        Check("b", 5, broken),
        Check("c", 5, lambda: looks.append("well")),
    ]
    beat = tmp_path / "stack" / "watchdog.json"
    watch(checks, beat, clock=clock, sleep=sleep, rounds=4)
    assert looks.count("away") == 2
    assert looks.count("well") == 4
    assert beat.exists()
    assert sum("Prefect does not answer" in r.message for r in caplog.records) == 1
    assert sum("could not be made: KeyError" in r.message for r in caplog.records) == 1


def test_an_alert_waits_for_a_process_that_knows_a_receiver(state: Home, prefect: Any) -> None:
    """As from a run whose worker has no webhooks, and the watchdog that has them."""
    alerts = Alerts(state.root / "alerts.json", Notices(state.root / "outbox"))
    assert alerts.tell(Alert("failed", "x", "x", "x"))
    assert alerts.deliver() == 1
    knows = notices_of(state, prefect_api=prefect.url, environ={})
    assert Alerts(state.root / "alerts.json", knows).deliver() == 0
    assert len(prefect.events) == 1
    assert not list((state.root / "outbox").glob("[0-9]*.json"))
