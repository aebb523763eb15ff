"""A stack with its real servers in a folder of its own: what tests do to it, and what they ask it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from flows.stack import leftovers
from flows.stack.api import PrefectApi
from flows.stack.configuration import socket_file
from tasks.errors import StageFailed
from tasks.home import Home
from tasks.tracking import Tracker
from tasks.training.checkpoints import MANIFEST
from tasks.turn import _holder, is_taken
from tests.loopback import free_port
from tests.webhook import webhook

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
AGAIN = {"tags": {"all_": ["loraline:again"]}}
"""Filter of runs that the watchdog started because the one before them crashed."""


@dataclass(frozen=True)
class PatientApi(PrefectApi):
    """Asks once more where a busy server says that it cannot just now; it has done nothing then."""

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        deadline = time.monotonic() + self.timeout_seconds
        while True:
            try:
                return super().ask(method, path, body)
            except StageFailed as error:
                if "status 503" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(1)


@dataclass
class Stack:
    """A stack, and who is told of its alerts."""

    cli: Any
    ports: tuple[str, ...]
    webhook: str
    told: list[dict[str, Any]] = field(default_factory=list)
    more: dict[str, str] = field(default_factory=dict)
    """Further variables of its environment."""

    @property
    def home(self) -> Home:
        return Home((self.cli.folder / ".loraline").resolve())

    @property
    def api(self) -> PrefectApi:
        # A busy machine takes its time; what is late fails by the test's own limits.
        return PatientApi(f"http://127.0.0.1:{self.ports[1]}/api", timeout_seconds=120)

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.ports[3]}"

    @property
    def tracker(self) -> Tracker:
        return Tracker(self.home, self.mlflow_url)

    @property
    def environment(self) -> dict[str, str]:
        return {"LORALINE_WEBHOOKS": self.webhook, "OMP_NUM_THREADS": "1", **self.more}

    def up(self) -> dict[str, Any]:
        done = self.cli("up", *self.ports, "--json", **self.environment)
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

    def kill_part(self, name: str) -> None:
        os.kill(self.part(name)["pid"], signal.SIGKILL)

    def kill_everything(self) -> None:
        """As a loss of power does: nothing gets the chance to end in order."""
        while found := leftovers.processes(self.home):
            kill(found)

    def schedules_go_on(self, slug: str = "every-minute", since: datetime | None = None) -> None:
        """Wait for the good end of a run of this schedule that came due since then, or from now on."""
        since = since or datetime.now(UTC)
        done = {
            "expected_start_time": {"after_": since.isoformat()},
            "state": {"type": {"any_": ["COMPLETED"]}},
        }
        until(
            lambda: [
                run
                for run in self.api.flow_runs(done)
                if (run["created_by"] or {}).get("display_value") == slug
            ],
            300,
        )

    def stop_part(self, name: str) -> None:
        """End a part and let nobody start it again; its port is closed then."""
        self._supervisorctl("stop", name)

    def start_part(self, name: str) -> None:
        """Start it again."""
        self._supervisorctl("start", name)

    def _supervisorctl(self, *command: str) -> None:
        socket_url = f"unix://{socket_file(self.home)}"
        done = subprocess.run(
            [sys.executable, "-P", "-m", "supervisor.supervisorctl", "-s", socket_url, *command],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def write_recipe(self, name: str, **changes: str) -> Path:
        """`small.yaml` under another name, with texts replaced: `max_steps="max_steps: 60"`."""
        text = (self.cli.folder / "recipes" / "small.yaml").read_text()
        text = text.replace("name: small", f"name: {name}")
        known = {"max_steps": "max_steps: 6", "seed": f"name: {name}"}
        for field_name, new in changes.items():
            assert known[field_name] in text
            text = text.replace(known[field_name], new)
        recipe: Path = self.cli.folder / "recipes" / f"{name}.yaml"
        recipe.write_text(text)
        return recipe

    def start(self, deployment: str, parameters: dict[str, Any]) -> str:
        """Start a run as the form in Prefect's pages does; its id."""
        found = self.api.ask(
            "POST", "/deployments/filter", {"deployments": {"name": {"any_": [deployment]}}}
        )
        wanted = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        path = f"/deployments/{found[0]['id']}/create_flow_run"
        return str(self.api.ask("POST", path, wanted)["id"])

    def start_long_run(self, name: str, steps: int, seed: int | None = None) -> str:
        """The id of a retraining that takes a while, and is no other run's."""
        recipe = self.write_recipe(
            name,
            seed=f"name: {name}\nseed: {steps if seed is None else seed}",
            max_steps=f"max_steps: {steps}\n    save_steps: 5",
        )
        return self.start("retrain", {"recipe": str(recipe)})

    def run(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.ask("GET", f"/flow_runs/{run}")
        return found

    def state(self, run: str) -> str:
        return str(self.run(run)["state"]["type"])

    def end_of(self, run: str, seconds: float = 600) -> dict[str, Any]:
        """The final state, once there is one."""

        def ended() -> dict[str, Any] | None:
            state: dict[str, Any] = self.run(run)["state"]
            return state if state["type"] in ENDED else None

        found: dict[str, Any] = until(ended, seconds)
        return found

    def repetitions_of(self, run: str) -> list[str]:
        """The runs that the watchdog started of the recipe of a crashed one."""
        recipe = self.run(run)["parameters"]["recipe"]
        runs = self.api.flow_runs(AGAIN)
        return [str(it["id"]) for it in runs if it["parameters"].get("recipe") == recipe]

    def repetition_of(self, run: str) -> str:
        """The run that the watchdog started for a crashed one."""

        def found() -> str | None:
            ids = self.repetitions_of(run)
            assert len(ids) < 2
            return ids[0] if ids else None

        return str(until(found))

    def log_of(self, run: str) -> list[str]:
        where = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [str(line["message"]) for line in self.api.ask("POST", "/logs/filter", where)]

    def steps_of(self, run: str, total: int) -> list[int]:
        """The training steps that the run's log tells of."""
        pattern = re.compile(rf"step ([\d,]+) of {total:,}\b")
        found = (step for line in self.log_of(run) for step in pattern.findall(line))
        return [int(step.replace(",", "")) for step in found]

    def checkpoints(self) -> list[Path]:
        """Complete ones of the trainings that are under way."""
        files = self.home.work.glob(f"training-*/**/checkpoint-*/{MANIFEST}")
        return [path.parent for path in files]

    def mlflow_run(self) -> str:
        """The one MLflow run that a process is writing."""

        def found() -> str | None:
            leases = list(self.home.locks.glob("mlflow-run-*.lock"))
            return leases[0].stem.removeprefix("mlflow-run-") if len(leases) == 1 else None

        return str(until(found))

    def processes_of(self, run: str) -> list[psutil.Process]:
        """All processes that work for a flow run."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(leftovers.FLOW_RUN) == run:
                    found.append(process)
            except psutil.Error:
                continue
        return [p for p in found if p.status() != psutil.STATUS_ZOMBIE]

    def trainers_of(self, run: str) -> list[psutil.Process]:
        """Those of them that train, without the one that only starts them."""
        return [
            process
            for process in self.processes_of(run)
            if "tasks.training.worker" in process.cmdline()
            and "accelerate.commands.launch" not in process.cmdline()
        ]

    def is_trained(self, name: str) -> bool:
        """Whether a process holds the adapter's lock."""
        return is_taken(self.home, name)

    def trained_by(self, name: str) -> str | None:
        """The flow run that holds the adapter's lock, by the note beside it; None when it is free."""
        holder = _holder(self.home.locks / f"adapter-{name}.json")
        return str(holder and holder.url).rpartition("/")[2] if self.is_trained(name) else None

    def alerts_of(self, run: str) -> list[str]:
        """The kinds of alerts that were told of a run."""
        found = [it["data"] for it in self.told if it["type"] == "loraline.alert"]
        return [it["kind"] for it in found if it.get("flow_run") == run]


@contextmanager
def running_stack(cli: Any, **environment: str) -> Iterator[Stack]:
    """A healthy stack in the folder of `cli`, on free ports; nothing of it is left afterwards."""
    ports = ("--prefect-port", str(free_port()), "--mlflow-port", str(free_port()))
    with webhook() as (url, told):
        found = Stack(cli, ports, url, told, environment)
        try:
            found.up()
            yield found
        finally:
            cli("down")
    left = leftovers.processes(found.home)
    assert not left, [p.cmdline() for p in left]


def until(what: Callable[[], Any], seconds: float = 480) -> Any:
    """What `what` returns, once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"it did not come about in {seconds:.0f} s"
        time.sleep(0.5)
    return found


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL, all at once."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(processes, timeout=5)
