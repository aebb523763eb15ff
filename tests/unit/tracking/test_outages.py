"""MLflow away at the start, in the middle or at the end of a training: no point is lost, no run ends."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from flows.run_record import PrefectRun, RunRecord
from tasks.errors import StageFailed, UserError
from tasks.metric_writer import MetricWriter
from tasks.progress import announce
from tasks.tracking import Tracker

RECIPE = """\
name: outages
base: {base}
dataset:
  sources:
    - {{type: jsonl, path: rows.jsonl}}
"""
STEPS = range(1, 31)


class Server:
    """Between the tracker and its database: nothing passes while it is down."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.down = False
        for name in ("open_run", "log_metrics", "_send", "close_run"):
            patch.setattr(Tracker, name, self._guarded(name, getattr(Tracker, name)))
        writer = MetricWriter.__init__

        def quick(self: Any, *args: Any, **options: Any) -> None:
            writer(self, *args, seconds_between_batches=0.02, **options)

        patch.setattr(MetricWriter, "__init__", quick)

    def _guarded(self, name: str, real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if self.down:
                raise StageFailed(f"MLflow does not answer ({name})")
            return real(*args, **options)

        return call


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all: making one takes longer than a test."""
    return tmp_path_factory.mktemp("common") / "loraline-home"


@pytest.fixture
def run(
    tmp_path: Path, tiny_base: Path, common: Path, monkeypatch: pytest.MonkeyPatch
) -> RunRecord:
    monkeypatch.setenv("LORALINE_HOME", str(common))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(base=tiny_base))
    (tmp_path / "rows.jsonl").write_text("")
    return RunRecord(path, (), False, PrefectRun(None, None))


def loss_at(step: int) -> float:
    return 3.0 / step


def hear_of_steps(server: Server, down: range) -> None:
    """As the task tells of a training while the server is away during `down`."""
    announce("note", stage="training", message="Starting the worker process.")
    for step in STEPS:
        server.down = step in down
        announce("step", stage="training", step=step, loss=loss_at(step), tokens_per_second=9.0)
        time.sleep(0.002)


def write_history(folder: Path) -> Path:
    """What the trainer keeps by itself."""
    path = folder / "history.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": loss_at(s)}) + "\n" for s in STEPS))
    return path


def train_and_register(run: RunRecord, server: Server, folder: Path) -> None:
    with run:
        hear_of_steps(server, range(20, 31))
        run.mlflow.send_missing_steps(write_history(folder))


def stored(run: RunRecord) -> list[tuple[int, float]]:
    points = run.tracker.client.get_metric_history(run.mlflow.id, "train.loss")
    return sorted((point.step, point.value) for point in points)


@pytest.mark.parametrize(
    ("before", "during"),
    [(True, range(1, 1)), (False, range(10, 20)), (False, range(10, 31))],
    ids=["at the start", "in the middle", "until the training's end"],
)
def test_no_point_is_lost_and_none_comes_twice(
    run: RunRecord, server: Server, tmp_path: Path, before: bool, during: range
) -> None:
    with run:
        server.down = before
        hear_of_steps(server, during)
        server.down = False
        run.mlflow.send_missing_steps(write_history(tmp_path))
    assert stored(run) == [(step, loss_at(step)) for step in STEPS]
    assert run.tracker.client.get_run(run.mlflow.id).info.status == "FINISHED"


def test_away_at_the_very_end_the_run_says_so_and_the_next_one_sends_all(
    run: RunRecord, server: Server, tmp_path: Path
) -> None:
    began = time.monotonic()
    with pytest.raises(StageFailed, match="MLflow"):
        train_and_register(run, server, tmp_path)
    assert time.monotonic() - began < 30
    server.down = False
    again = RunRecord(run.facts.recipe_path, (), False, PrefectRun(None, None))
    with again:
        again.mlflow.send_missing_steps(write_history(tmp_path))
    assert stored(again) == [(step, loss_at(step)) for step in STEPS]


def test_a_training_hears_nothing_of_an_outage(run: RunRecord, server: Server) -> None:
    with run:
        server.down = True
        began = time.monotonic()
        announce("note", stage="training", message="Starting the worker process.")
        for step in range(1, 1001):
            announce("step", stage="training", step=step, loss=1.0)
        assert time.monotonic() - began < 5
        server.down = False


def test_no_training_is_begun_for_an_experiment_that_was_deleted(run: RunRecord) -> None:
    tracker = run.tracker
    experiment = tracker.experiment_id(run.facts.experiment)
    tracker.client.delete_experiment(experiment)
    dataset: Any = object()
    way_out = f"`MLFLOW_TRACKING_URI={tracker.uri} mlflow experiments restore --experiment-id {experiment}`"
    with pytest.raises(UserError, match=re.escape(way_out)):
        run.begin(dataset, None)
    # The database is that of the other tests, too.
    tracker.client.restore_experiment(experiment)
