"""One stack with three recipes, and a browser for each test."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import StageFailed
from tests.browser.chromium import MISSING, chromium
from tests.browser.mlflow_pages import MlflowPages
from tests.browser.page import Page
from tests.browser.prefect_pages import PrefectPages
from tests.flows.conftest import RECIPE, Cli
from tests.running_stack import Stack, running_stack, until

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


def recipe(base: Path, name: str, *, gate: str, policy: str, cron: str = "") -> str:
    """A recipe that differs from the others only behind the training, which all three share."""
    text = RECIPE.format(base=base).replace("name: small", f"name: {name}")
    text = text.replace("policy: automatic", f"policy: {policy}")
    text = text.replace("promotion:\n", f"{gate}promotion:\n")
    return text + (SCHEDULE.format(cron=cron) if cron else "")


class WatchedStack(Stack):
    """A running stack, and what a test does beside the pages."""

    @property
    def prefect_url(self) -> str:
        return f"http://127.0.0.1:{self.ports[1]}"

    def retrain(self, recipe: str, *overrides: str) -> dict[str, Any]:
        """Run `retrain`, and wait; the run's state."""
        given = {"recipe": f"recipes/{recipe}.yaml", "overrides": list(overrides)}
        return self.end_of(self.start("retrain", given), TRAINING)

    def start(self, deployment: str, parameters: dict[str, Any]) -> str:
        """As the base does, and again while SQLite is too busy: Prefect's own clients do the same."""

        def started() -> str | None:
            try:
                return super(WatchedStack, self).start(deployment, parameters)
            except StageFailed as error:
                if "status 503" not in str(error):
                    raise
                return None

        return str(until(started))

    def reached(self, run: str, words: str) -> None:
        """Until the run's log says so."""
        until(lambda: any(words in line for line in self.log_of(run)), TRAINING)

    def run_because(self, reason: str) -> str:
        """The id of the retraining that was started with this reason."""

        def started() -> str | None:
            runs = self.api.flow_runs({})
            found = (str(it["id"]) for it in runs if it["parameters"].get("reason") == reason)
            return next(found, None)

        return str(until(started))

    def waiting_form(self, name: str) -> str:
        """The id of the run that waits for an answer about the model."""

        def waiting() -> str | None:
            runs = self.api.flow_runs({"state": {"type": {"any_": ["PAUSED"]}}})
            return next((str(it["id"]) for it in runs if it["name"].startswith(f"{name} v")), None)

        return str(until(waiting, TRAINING))

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


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> Iterator[WatchedStack]:
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
    with running_stack(Cli(folder)) as found:
        yield WatchedStack(**vars(found))


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A browser that nobody has used. Its pages ask nobody but the stack."""
    if MISSING is not None:
        pytest.skip(MISSING)
    with chromium(tmp_path / "chromium") as driver:
        found = Page(driver, tmp_path / "pictures")
        yield found
        assert found.hosts() <= {"127.0.0.1"}


@pytest.fixture
def prefect(page: Page, stack: WatchedStack) -> PrefectPages:
    """Prefect in that browser."""
    return PrefectPages(page, stack.prefect_url)


@pytest.fixture
def mlflow(page: Page, stack: WatchedStack) -> MlflowPages:
    """MLflow in that browser."""
    return MlflowPages(page, stack.mlflow_url)
