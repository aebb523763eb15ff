"""Tracking: where it goes, and that one run says everything about one pipeline run."""

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pandas as pd
import pytest

from tasks.errors import StageFailed, UserError
from tasks.home import Home
from tasks.tracking import Tracker, refuse_unreachable, tracking_uri

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """A home's own database, shared by the module."""
    return Tracker(Home(tmp_path_factory.mktemp("home").resolve() / ".loraline"))


def open_run(tracker: Tracker, **params: object) -> str:
    return tracker.open_run("docs", "a run", tags={"loraline.recipe": "a"}, params=params)


def test_a_home_tracks_in_its_own_database(tmp_path: Path) -> None:
    assert tracking_uri(Home(tmp_path)) == f"sqlite:///{tmp_path}/mlflow/mlflow.db"


def test_the_environment_s_server_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example.org")
    assert tracking_uri(Home(tmp_path)) == "http://mlflow.example.org"


@pytest.mark.parametrize("uri", ["file:///data/mlruns", "./mlruns", "mlruns"])
def test_a_folder_of_files_is_refused_as_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="a folder of files"):
        tracking_uri(Home(tmp_path))


def test_a_running_server_of_this_home_is_used_and_a_stale_one_is_not(tmp_path: Path) -> None:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    home = Home(tmp_path)
    server = HTTPServer(("127.0.0.1", 0), Healthy)
    url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        home.stack_file.write_text(json.dumps({"mlflow": {"url": url, "pid": os.getpid()}}))
        assert tracking_uri(home) == url
        assert Tracker(home).owns_artifacts
        assert Tracker(home).ui_url == url
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        home.stack_file.write_text(json.dumps({"mlflow": {"url": url, "pid": ended.pid}}))
        assert tracking_uri(home).startswith("sqlite:")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    home.stack_file.write_text(json.dumps({"mlflow": {"url": url, "pid": os.getpid()}}))
    assert tracking_uri(home).startswith("sqlite:")
    home.stack_file.write_text("{")
    assert tracking_uri(home).startswith("sqlite:")


def test_a_run_holds_parameters_metrics_data_files_and_a_table(
    tracker: Tracker, tmp_path: Path
) -> None:
    run_id = open_run(
        tracker, seed=42, training={"peft_config": {"r": 8, "target_modules": ["a", "b"]}}
    )
    tracker.log_metrics(run_id, {"rougeL": 0.5}, step=3)
    with_writer = tracker.metric_writer(run_id)
    for step in range(5):
        with_writer.add({"train.loss": 5.0 - step}, step)
    with_writer.close()
    tracker.log_dataset(
        run_id, name="d", digest="a" * 64, source="jsonl", counts={"train": 3}, context="training"
    )
    (tmp_path / "report.md").write_text("# Report\n")
    tracker.log_files(run_id, [(tmp_path / "report.md", "report")])
    pd.DataFrame({"id": ["x", "y"], "answer": ["1", "ü"]}).to_parquet(tmp_path / "p.parquet")
    tracker.log_table(run_id, tmp_path / "p.parquet", "predictions")
    tracker.log_table(run_id, tmp_path / "p.parquet", "predictions")
    tracker.describe_run(run_id, "hello")
    tracker.close_run(run_id, "FINISHED")

    client = tracker.client
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.peft_config.r"] == "8"
    assert run.data.params["training.peft_config.target_modules"] == '["a", "b"]'
    assert run.data.metrics == {"rougeL": 0.5, "train.loss": 1.0}
    history = client.get_metric_history(run_id, "train.loss")
    assert [(point.step, point.value) for point in history] == [(s, 5.0 - s) for s in range(5)]
    recorded = run.inputs.dataset_inputs[0].dataset
    assert recorded.digest == "a" * 36
    assert json.loads(recorded.profile) == {"train": 3, "digest": "a" * 64}
    assert run.data.tags["mlflow.note.content"] == "hello"
    table = json.loads(Path(client.download_artifacts(run_id, "predictions.json")).read_text())
    assert table == {"columns": ["id", "answer"], "data": [["x", "1"], ["y", "ü"]]}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"])[0]["type"] == "table"
    assert {entry.path for entry in client.list_artifacts(run_id)} == {"report", "predictions.json"}
    assert tracker.run_url(run_id) == (
        f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run_id}"
    )


def test_points_that_are_sent_twice_are_stored_once(tracker: Tracker) -> None:
    from tasks.metric_writer import Point

    run_id = open_run(tracker)
    points = [Point("loss", 1.0, 1_000, 1), Point("loss", 0.5, 2_000, 2)]
    tracker._send(run_id, points)
    tracker._send(run_id, points)
    assert len(tracker.client.get_metric_history(run_id, "loss")) == 2


def test_long_and_repeated_parameters_are_no_error(tracker: Tracker) -> None:
    run_id = open_run(tracker, text="x" * 10_000, many={f"k{i}": i for i in range(250)})
    tracker.log_params(run_id, {"text": "x" * 10_000, "new@name": None})
    tracker.log_params(run_id, {"text": "changed"})
    params = tracker.client.get_run(run_id).data.params
    assert len(params["text"]) == 6000
    assert params["text"].endswith("...")
    assert params["many.k249"] == "249"
    assert params["new_name"] == "null"


@pytest.mark.parametrize("answered", [0, 1])
def test_a_run_whose_answer_was_lost_does_not_stay_running(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, answered: int
) -> None:
    """MLflow's client repeats the request, and both were carried out."""
    create, made = tracker.client.create_run, []

    def twice(*args: Any, **kwargs: Any) -> Any:
        made.extend([create(*args, **kwargs), create(*args, **kwargs)])
        return made[answered]

    other = open_run(tracker)
    monkeypatch.setattr(tracker.client, "create_run", twice)
    run_id = open_run(tracker)
    status = {run.info.run_id: tracker.client.get_run(run.info.run_id).info.status for run in made}
    assert run_id == made[answered].info.run_id
    assert status[run_id] == "RUNNING"
    assert status[made[1 - answered].info.run_id] == "KILLED"
    assert tracker.client.get_run(other).info.status == "RUNNING"


def test_a_run_is_found_again_by_its_tags(tracker: Tracker) -> None:
    tags = {"loraline.fingerprint.training": "it's 1", "loraline.recipe": "x"}
    run_id = tracker.open_run("found", "a", tags=tags, params={})
    tracker.open_run("found", "b", tags={"loraline.recipe": "x"}, params={})
    assert tracker.find_run("found", tags) == run_id
    assert tracker.find_run("found", {"loraline.recipe": "y"}) is None
    assert tracker.find_run("no such experiment", tags) is None


def test_everything_lies_in_the_home_and_nothing_beside_the_code(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    before = set(tmp_path.iterdir())
    run_id = tracker.open_run("own: place/1", "a", tags={}, params={})
    tracker.log_files(run_id, [(tmp_path / "a.txt", None)])
    assert set(tmp_path.iterdir()) == before
    artifacts = tracker.home.mlflow / "artifacts"
    assert [p.name for p in artifacts.rglob("a.txt")] == ["a.txt"]


def test_a_deleted_experiment_is_named_with_the_way_to_restore_it(tracker: Tracker) -> None:
    run_id = tracker.open_run("gone", "a", tags={}, params={})
    experiment = tracker.client.get_run(run_id).info.experiment_id
    tracker.client.delete_experiment(experiment)
    with pytest.raises(UserError, match=f"restore --experiment-id {experiment}"):
        tracker.open_run("gone", "b", tags={}, params={})


def test_a_server_that_does_not_answer_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    lost = Tracker(Home(tmp_path), "http://user:hunter2@127.0.0.1:9")
    with pytest.raises(StageFailed, match=r"MLflow at http://127\.0\.0\.1:9 could not") as caught:
        lost.open_run("a", "b", tags={}, params={})
    assert "hunter2" not in str(caught.value)


@pytest.mark.long
def test_four_first_clients_at_once_find_one_whole_database(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tasks.home import Home\n"
        "from tasks.tracking import Tracker\n"
        "print(Tracker(Home(Path(sys.argv[1]))).open_run('e', 'r', tags={}, params={'a': 1}))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "home")],
            cwd=ROOT,
            env={**os.environ, **Home(tmp_path / "home").environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    results = [process.communicate(timeout=300) for process in processes]
    assert all(process.returncode == 0 for process in processes), results
    assert len({out.strip() for out, _ in results}) == 4
    client = Tracker(Home(tmp_path / "home")).client
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 4


def test_a_first_client_that_is_killed_half_way_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    """MLflow's first tables are no transaction: it would refuse ever after what it had begun."""
    home = Home(tmp_path / "home")
    script = (
        "import sys; from pathlib import Path; from tasks.home import Home\n"
        "from tasks.tracking import Tracker\n"
        "Tracker(Home(Path(sys.argv[1]))).client\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(home.root)],
        cwd=ROOT,
        env={**os.environ, **home.environment()},
    )
    try:
        # The first of its tables are there, and by far not the last.
        while not any(p.stat().st_size > 80_000 for p in home.mlflow.rglob("mlflow.db")):
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert Tracker(home).open_run("e", "r", tags={}, params={})
    assert not (home.mlflow / "begun").exists()


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import sys, tasks.tracking, tasks.registry; print('mlflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "uri", ["http://me:geheim@127.0.0.1:9/mlflow", "postgresql://me:geheim@127.0.0.1:9/mlflow"]
)
def test_a_server_that_is_not_there_is_told_at_once_with_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    began = time.monotonic()
    with pytest.raises(StageFailed) as failure:
        refuse_unreachable(Home(tmp_path))
    assert time.monotonic() - began < 5
    text = str(failure.value)
    assert f"{uri.split(':')[0]}://127.0.0.1:9/mlflow, named by MLFLOW_TRACKING_URI," in text
    assert "Connection refused" in text
    assert "take the setting away" in text
    assert "geheim" not in text


def test_an_own_database_needs_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    refuse_unreachable(Home(tmp_path))
    assert not any(tmp_path.glob("mlflow*"))
