"""The whole stack with its real servers: it starts, survives the death of each part, and leaves nothing."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.stack import leftovers
from flows.stack.api import PrefectApi
from tasks.home import Home
from tasks.stack import running
from tasks.tracking import Tracker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
PARTS = ("prefect", "mlflow", "worker", "registry-worker", "watchdog")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Stack:
    """A stack in a folder of its own, and who is told of its alerts."""

    cli: Any
    ports: tuple[str, ...]
    webhook: str
    told: list[dict[str, Any]] = field(default_factory=list)

    @property
    def home(self) -> Home:
        return Home((self.cli.folder / ".loraline").resolve())

    @property
    def api(self) -> PrefectApi:
        return PrefectApi(f"http://127.0.0.1:{self.ports[1]}/api")

    def up(self) -> dict[str, Any]:
        environment = {"LORALINE_WEBHOOKS": self.webhook, "OMP_NUM_THREADS": "1"}
        done = self.cli("up", *self.ports, "--json", **environment)
        assert done.returncode == 0, done.stderr[-4000:]
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    def status(self) -> dict[str, Any]:
        found = json.loads(self.cli("status", "--json").stdout)
        assert isinstance(found, dict)
        return found

    def part(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(p for p in self.status()["parts"] if p["name"] == name)
        return found

    def kill_everything(self) -> None:
        """As a loss of power does: nothing gets the chance to end in order."""
        while found := leftovers.processes(self.home):
            for process in found:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    pass
            psutil.wait_procs(found, timeout=5)


def until(what: Callable[[], Any], seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.5)
    return found


@pytest.fixture(scope="module")
def stack(small: Any) -> Iterator[Stack]:
    """A healthy stack; the recipe has had one successful run."""
    told: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ports = ("--prefect-port", str(free_port()), "--mlflow-port", str(free_port()))
    found = Stack(small, ports, f"http://127.0.0.1:{server.server_port}/", told)
    found.up()
    yield found
    small("down")
    server.shutdown()
    server.server_close()
    left = leftovers.processes(found.home)
    assert not left, [p.cmdline() for p in left]


def test_every_part_is_healthy_and_a_second_up_finds_them(stack: Stack) -> None:
    before = {p["name"]: p["pid"] for p in stack.status()["parts"]}
    assert set(before) == set(PARTS)
    again = stack.up()
    assert again["healthy"] is True
    assert {p["name"]: p["pid"] for p in again["parts"]} == before
    server = running(stack.home, "prefect")
    assert server is not None
    assert server.supervised


def test_nothing_of_the_stack_listens_beyond_loopback(stack: Stack) -> None:
    listening = [
        connection.laddr.ip
        for process in leftovers.processes(stack.home)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}


def test_schedules_fire_and_scheduled_runs_end(stack: Stack) -> None:
    assert stack.api.flow_runs({"state": {"type": {"any_": ["SCHEDULED"]}}})
    until(lambda: stack.api.flow_runs({"state": {"type": {"any_": ["COMPLETED"]}}}))


@pytest.mark.parametrize("name", PARTS)
def test_a_killed_part_is_started_again_and_counted(stack: Stack, name: str) -> None:
    before = stack.part(name)
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: stack.part(name)["restarts"] == before["restarts"] + 1)
    until(lambda: stack.status()["healthy"])
    assert stack.part(name)["pid"] != before["pid"]


def test_a_killed_supervisor_takes_its_parts_along_and_up_starts_them_again(stack: Stack) -> None:
    os.kill(stack.status()["supervisor_pid"], signal.SIGKILL)
    until(lambda: not leftovers.processes(stack.home), 60)
    found = stack.status()
    assert found["running"] is False
    assert "was killed" in found["message"]
    assert stack.up()["healthy"] is True


def start_long_run(stack: Stack, name: str, steps: int) -> str:
    """The id of a run whose training takes a while, and is no other run's."""
    recipe: Path = stack.cli.folder / "recipes" / f"{name}.yaml"
    text = (stack.cli.folder / "recipes" / "small.yaml").read_text()
    text = text.replace("name: small", f"name: {name}\nseed: {steps}")
    recipe.write_text(text.replace("max_steps: 6", f"max_steps: {steps}\n    save_steps: 5"))
    found = stack.api.ask(
        "POST", "/deployments/filter", {"deployments": {"name": {"any_": ["retrain"]}}}
    )
    wanted = {"parameters": {"recipe": str(recipe)}, "state": {"type": "SCHEDULED"}}
    path = f"/deployments/{found[0]['id']}/create_flow_run"
    return str(stack.api.ask("POST", path, wanted)["id"])


def test_a_run_whose_worker_died_can_still_be_cancelled(stack: Stack) -> None:
    run = start_long_run(stack, "cancelled", 5000)
    until(lambda: list(stack.home.work.glob("training-*/**/checkpoint-*")))
    os.kill(stack.part("worker")["pid"], signal.SIGKILL)
    # It goes on without its worker, and is not taken for dead.
    time.sleep(5)
    assert run in leftovers.living_flow_runs()
    body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    stack.api.ask("POST", f"/flow_runs/{run}/set_state", body)
    until(lambda: run not in leftovers.living_flow_runs(), 120)
    # For a moment it is what its own process reported when that was ended.
    until(lambda: stack.api.ask("GET", f"/flow_runs/{run}")["state"]["type"] == "CANCELLED", 60)
    assert not stack.api.flow_runs({"tags": {"all_": ["loraline:again"]}})
    # Not in the way of those that count what lies there.
    shutil.rmtree(stack.home.work)
    until(lambda: stack.status()["healthy"])


def test_a_machine_that_dies_in_a_training_ends_in_a_finished_one_and_one_alert(
    stack: Stack,
) -> None:
    first = start_long_run(stack, "long", 60)
    until(lambda: len(list(stack.home.work.glob("training-*/**/checkpoint-*"))) > 1)
    (lease,) = stack.home.locks.glob("mlflow-run-*.lock")
    mlflow_run = lease.stem.removeprefix("mlflow-run-")
    stack.told.clear()
    stack.kill_everything()

    stack.up()
    healthy = time.monotonic()
    until(lambda: stack.api.ask("GET", f"/flow_runs/{first}")["state"]["type"] == "CRASHED", 120)
    assert time.monotonic() - healthy < 120
    tracker = Tracker(stack.home, f"http://127.0.0.1:{stack.ports[3]}")
    assert tracker.client.get_run(mlflow_run).info.status == "KILLED"
    (again,) = until(lambda: stack.api.flow_runs({"tags": {"all_": ["loraline:again"]}}))
    done = until(lambda: ended(stack.api, again["id"]), 600)
    assert done["type"] == "COMPLETED", done
    assert [alert["data"]["flow_run"] for alert in stack.told if is_crash(alert)] == [first]
    logs = stack.api.ask(
        "POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [again["id"]]}}, "limit": 200}
    )
    steps = [int(s) for log in logs for s in re.findall(r"step (\d+)/60", log["message"])]
    assert steps
    # It goes on from the last complete checkpoint.
    assert min(steps) > 5


def ended(api: PrefectApi, run: str) -> dict[str, Any] | None:
    state: dict[str, Any] = api.ask("GET", f"/flow_runs/{run}")["state"]
    return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def is_crash(alert: dict[str, Any]) -> bool:
    return alert["type"] == "loraline.alert" and alert["data"]["kind"] == "crashed"


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
    tracker = Tracker(stack.home, f"http://127.0.0.1:{stack.ports[3]}")
    assert tracker.client.search_model_versions("name = 'small'")
    assert stack.api.flow_runs({"state": {"type": {"any_": ["SCHEDULED"]}}})


def test_in_the_foreground_it_stays_until_it_is_told_to_end(stack: Stack) -> None:
    stack.cli("down")
    process = subprocess.Popen(
        [str(stack.cli.python), "-P", "-m", "flows.cli", "up", "--foreground", *stack.ports],
        cwd=stack.cli.folder,
        env=stack.cli.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        # Its addresses are printed when everything is healthy.
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert [line.split()[0] for line in lines] == ["Prefect", "MLflow"]
        assert stack.status()["healthy"] is True
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=180) == 0
    assert not leftovers.processes(stack.home)
