"""One stack with three recipes, and a browser for each test."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.stack import leftovers
from flows.stack.api import PrefectApi
from tasks.home import Home
from tasks.tracking import Tracker
from tests.browser.chromium import MISSING, chromium
from tests.browser.mlflow_pages import MlflowPages
from tests.browser.page import Page
from tests.browser.prefect_pages import PrefectPages
from tests.flows.conftest import RECIPE, Cli

EASY_GATE = """\
  gate:
    - {metric: loss, against: champion, max_drop: 5.0, min_rows: 2}
    - {metric: rougeL, against: champion, max_drop: 0.9, min_rows: 2}
"""
STRICT_GATE = """\
  gate:
    - {metric: stop_rate, min: 0.99}
    - {metric: loss, against: base, min_gain: 50.0, min_rows: 2}
"""
SCHEDULE = 'schedule:\n  cron: "{cron}"\n  timezone: Europe/Berlin\n'
TRAINING = 900.0
"""Seconds that a retraining may take while other programs use the cores; alone it takes less than one minute."""
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def recipe(base: Path, name: str, *, gate: str, policy: str, cron: str = "") -> str:
    """A recipe that differs from the others only behind the training, which all three share."""
    text = RECIPE.format(base=base).replace("name: small", f"name: {name}")
    text = text.replace("policy: automatic", f"policy: {policy}")
    text = text.replace("promotion:\n", f"{gate}promotion:\n")
    return text + (SCHEDULE.format(cron=cron) if cron else "")


@dataclass
class Stack:
    """A running stack, for what a test does beside the pages."""

    cli: Cli
    prefect_url: str
    mlflow_url: str

    @property
    def home(self) -> Home:
        return Home((self.cli.folder / ".loraline").resolve())

    @property
    def api(self) -> PrefectApi:
        return PrefectApi(f"{self.prefect_url}/api", timeout_seconds=120)

    @property
    def tracker(self) -> Tracker:
        return Tracker(self.home, self.mlflow_url)

    def deployment(self, name: str) -> str:
        """Its id."""
        wanted = {"deployments": {"name": {"any_": [name]}}}
        return str(self.api.ask("POST", "/deployments/filter", wanted)[0]["id"])

    def retrain(self, recipe: str, *overrides: str) -> dict[str, Any]:
        """Run `retrain`, and wait; the run's state."""
        parameters = {"recipe": f"recipes/{recipe}.yaml", "overrides": list(overrides)}
        wanted = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        path = f"/deployments/{self.deployment('retrain')}/create_flow_run"
        return self.ended(str(self.api.ask("POST", path, wanted)["id"]))

    def reached(self, run: str, words: str) -> None:
        """Until the run's log says so."""
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}

        def said() -> bool:
            return any(
                words in it["message"] for it in self.api.ask("POST", "/logs/filter", wanted)
            )

        until(said, TRAINING)

    def ended(self, run: str) -> dict[str, Any]:
        """The state in which the run ends."""

        def state() -> dict[str, Any] | None:
            found: dict[str, Any] = self.api.ask("GET", f"/flow_runs/{run}")["state"]
            return found if found["type"] in ENDED else None

        return until(state, TRAINING)

    def run_because(self, reason: str) -> str:
        """The id of the retraining that was started with this reason."""

        def started() -> str | None:
            runs = self.api.flow_runs({"deployment_id": {"any_": [self.deployment("retrain")]}})
            found = (str(it["id"]) for it in runs if it["parameters"].get("reason") == reason)
            return next(found, None)

        return str(until(started))

    def waiting_form(self, name: str) -> str:
        """The id of the run that waits for an answer about the model."""

        def waiting() -> str | None:
            runs = self.api.flow_runs({"state": {"type": {"any_": ["PAUSED"]}}})
            return next((str(it["id"]) for it in runs if it["name"].startswith(f"{name} v")), None)

        return until(waiting, TRAINING)

    def audit(self, name: str) -> list[dict[str, Any]]:
        """The verified promotion log."""
        found = self.cli.json("audit", name)
        assert found["ok"] is True
        return list(found["entries"])

    def promotions(self, name: str) -> list[Any]:
        """The runs of its promotion log in MLflow, newest first."""
        client = self.tracker.client
        log = client.get_experiment_by_name(f"{name}/promotions")
        return [] if log is None else list(client.search_runs([log.experiment_id]))


def until(look: Callable[[], Any], seconds: float = 120) -> Any:
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"it did not come about within {seconds:.0f} s"
        time.sleep(0.5)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> Iterator[Stack]:
    """Servers, workers and deployments; nothing has been trained."""
    if MISSING is not None:
        pytest.skip(MISSING)
    folder = tmp_path_factory.mktemp("browser")
    recipes = folder / "recipes"
    recipes.mkdir()
    for name, text in {
        "docstrings": recipe(
            starter, "docstrings", gate=EASY_GATE, policy="automatic", cron="0 2 * * *"
        ),
        "reviewed": recipe(
            starter, "reviewed", gate=EASY_GATE, policy="approval", cron="30 3 * * 1"
        ),
        "strict": recipe(starter, "strict", gate=STRICT_GATE, policy="automatic"),
    }.items():
        (recipes / f"{name}.yaml").write_text(text)
    cli = Cli(folder)
    ports = free_port(), free_port()
    arguments = ("--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1]))
    done = cli("up", *arguments, "--json", OMP_NUM_THREADS="1")
    found = Stack(cli, *(f"http://127.0.0.1:{port}" for port in ports))
    try:
        assert done.returncode == 0, done.stderr[-4000:]
        assert json.loads(done.stdout)["healthy"] is True
        yield found
    finally:
        cli("down")
    left = leftovers.processes(found.home)
    assert not left, [it.cmdline() for it in left]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A browser that nobody has used. Its pages ask nobody but the stack."""
    if MISSING is not None:
        pytest.skip(MISSING)
    with chromium(tmp_path / "chromium") as driver:
        found = Page(driver)
        yield found
        assert found.hosts() <= {"127.0.0.1"}


@pytest.fixture
def prefect(page: Page, stack: Stack) -> PrefectPages:
    """Prefect in that browser."""
    return PrefectPages(page, stack.prefect_url)


@pytest.fixture
def mlflow(page: Page, stack: Stack) -> MlflowPages:
    """MLflow in that browser."""
    return MlflowPages(page, stack.mlflow_url)
