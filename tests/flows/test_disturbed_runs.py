"""The whole way through while something is taken away: the process, or the network."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.home import Home
from tasks.tracking import Tracker
from tasks.training.checkpoints import MANIFEST

pytestmark = pytest.mark.long


def arguments_of(name: str, *training: str) -> list[str]:
    """Of a run under another name, with fields of `training.training_config` set."""
    sets = [f"name={name}", *(f"training.training_config.{field}" for field in training)]
    return ["run", "recipes/small.yaml", *(word for value in sets for word in ("--set", value))]


def start(small: Any, arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(small.python), "-P", "-m", "flows.cli", *arguments, "--json"],
        cwd=small.folder,
        env=small.environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_checkpoint(small: Any, tmp_path: Path) -> None:
    """SIGKILL of the whole run in the middle of training; the next one resumes and registers."""
    arguments = arguments_of("killed", "max_steps=120", "save_steps=5")
    process = start(small, arguments)
    work = small.folder / ".loraline" / "work"
    try:
        end = time.monotonic() + 240
        while len(list(work.glob(f"training-*/**/checkpoint-*/{MANIFEST}"))) < 2:
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed = small.json(*arguments, "--set", "evaluation.bootstrap_samples=100")
    assert resumed["exit_code"] == 0, resumed["stderr"][-3000:]
    assert resumed["outcome"] == "registered"
    (result,) = (small.folder / ".loraline" / "store" / "training").glob(
        f"{resumed['stages']['training']['fingerprint']}/result.json"
    )
    assert json.loads(result.read_text())["resumed_from_step"] >= 5
    client = Tracker(Home(small.folder / ".loraline")).client
    experiment = client.get_experiment_by_name("killed")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]
    # A stack that is begun some day has nothing old to tell.
    database = small.folder / ".loraline" / "prefect" / "prefect.db"
    with closing(sqlite3.connect(database)) as connection:
        states = connection.execute("select state_type from flow_run where name like 'killed%'")
        assert sorted(state for (state,) in states) == ["COMPLETED", "CRASHED"]


@pytest.mark.slow
def test_a_run_whose_trainer_is_killed_says_so_and_the_same_command_goes_on(small: Any) -> None:
    """SIGKILL to the training process alone, as the kernel does for lack of memory."""
    # Another training than that of the test before, whose result would be taken.
    arguments = arguments_of("trainer-killed", "max_steps=121", "save_steps=5")
    process = start(small, arguments)
    work = small.folder / ".loraline" / "work"
    before = set(work.glob("training-*"))
    try:
        wait_for_checkpoint(process, work, before)
        trainer_of(process).kill()
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1, err[-3000:]
    answer = json.loads(out)
    assert answer["outcome"] == "failed"
    assert "ended from outside after step" in answer["reason"]
    assert "goes on from the checkpoint of step" in answer["reason"]
    assert "error: The training process was ended from outside" in err
    database = small.folder / ".loraline" / "prefect" / "prefect.db"
    with closing(sqlite3.connect(database)) as connection:
        (state,) = connection.execute(
            "select state_type from flow_run where id = ?", (answer["prefect_flow_run_id"],)
        ).fetchone()
    assert state == "FAILED"
    client = Tracker(Home(small.folder / ".loraline")).client
    assert client.get_run(answer["mlflow_run_id"]).info.status == "KILLED"
    resumed = small.json(*arguments)
    assert resumed["outcome"] == "registered", resumed["stderr"][-3000:]
    (result,) = (small.folder / ".loraline" / "store" / "training").glob(
        f"{resumed['stages']['training']['fingerprint']}/result.json"
    )
    assert json.loads(result.read_text())["resumed_from_step"] >= 5


def wait_for_checkpoint(process: "subprocess.Popen[str]", work: Path, before: set[Path]) -> None:
    """Until a training that was not there `before` has its first complete checkpoint."""
    end = time.monotonic() + 240
    while not any(
        list(new.glob(f"**/checkpoint-*/{MANIFEST}"))
        for new in set(work.glob("training-*")) - before
    ):
        assert process.poll() is None, "ended before it could be disturbed"
        assert time.monotonic() < end
        time.sleep(0.2)


def trainer_of(process: "subprocess.Popen[str]") -> psutil.Process:
    """The process of a run that trains, without the one that only starts it."""
    return max(
        (
            p
            for p in psutil.Process(process.pid).children(recursive=True)
            if "tasks.training.worker" in p.cmdline()
        ),
        key=lambda p: p.create_time(),
    )


@pytest.mark.slow
def test_a_preempted_training_is_retried_within_its_run_and_registered(small: Any) -> None:
    """SIGTERM to the training process alone, as a scheduler sends that takes a GPU back."""
    process = start(small, arguments_of("preempted", "max_steps=120", "save_steps=1000"))
    try:
        end = time.monotonic() + 240
        steps = 0
        logs = small.folder / ".loraline" / "logs"
        before = {log: log.stat().st_size for log in logs.glob("training-*.log")}
        while steps < 4:
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < end
            time.sleep(0.2)
            new = [log for log in logs.glob("training-*.log") if log not in before]
            steps = sum(log.read_text().count('"event": "step"') for log in new)
        trainer_of(process).terminate()
        out, err = process.communicate(timeout=400)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err[-3000:]
    answer = json.loads(out)
    assert answer["outcome"] == "registered"
    (result,) = (small.folder / ".loraline" / "store" / "training").glob(
        f"{answer['stages']['training']['fingerprint']}/result.json"
    )
    assert json.loads(result.read_text())["resumed_from_step"] >= 4
    client = Tracker(Home(small.folder / ".loraline")).client
    experiment = client.get_experiment_by_name("preempted")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "train.loss")
    assert sorted(point.step for point in points) == [1, *range(2, 121, 2)]


def test_an_interrupted_training_is_cancelled_in_prefect_and_killed_in_mlflow(small: Any) -> None:
    process = start(small, arguments_of("stopped", "max_steps=400", "save_steps=5"))
    work = small.folder / ".loraline" / "work"
    before = set(work.glob("training-*"))
    try:
        wait_for_checkpoint(process, work, before)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    answer = json.loads(out)
    assert answer["outcome"] == "failed"
    assert "checkpoint" in answer["reason"]
    database = small.folder / ".loraline" / "prefect" / "prefect.db"
    with closing(sqlite3.connect(database)) as connection:
        (state,) = connection.execute(
            "select state_type from flow_run where id = ?", (answer["prefect_flow_run_id"],)
        ).fetchone()
    assert state == "CANCELLED"
    client = Tracker(Home(small.folder / ".loraline")).client
    assert client.get_run(answer["mlflow_run_id"]).info.status == "KILLED"


def test_a_command_s_training_ends_when_it_is_cancelled_on_prefects_page(
    small: Any, standing_server: Any
) -> None:
    server = standing_server(small.folder)
    arguments = arguments_of("cancelled", "max_steps=401", "save_steps=5")
    process = start(small, arguments, PREFECT_API_URL=server.url)
    work = small.folder / ".loraline" / "work"
    before = set(work.glob("training-*"))
    try:
        wait_for_checkpoint(process, work, before)
        (run,) = server.api.flow_runs({"state": {"type": {"any_": ["RUNNING"]}}})
        # As the button does.
        told = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        server.api.ask("POST", f"/flow_runs/{run['id']}/set_state", told)
        since = time.monotonic()
        out, err = process.communicate(timeout=120)
        assert time.monotonic() - since < 60
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err[-3000:]
    assert "Somebody cancelled this run in Prefect." in err
    answer = json.loads(out)
    (run,) = server.api.flow_runs({"id": {"any_": [run["id"]]}})
    assert run["id"] == answer["prefect_flow_run_id"]
    assert run["state"]["type"] == "CANCELLED"
    client = Tracker(Home(small.folder / ".loraline")).client
    assert client.get_run(answer["mlflow_run_id"]).info.status == "KILLED"
    # This run's alone: the killed runs of other tests leave theirs to the next one that looks after them.
    assert not list((small.folder / ".loraline" / "locks").glob(f"flow-run-{run['id']}*"))


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or shutil.which("ip") is None
    or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode != 0,
    reason="needs unshare and the right to make a network namespace",
)
def test_everything_passes_with_the_network_unreachable(small: Any) -> None:
    """In a network namespace with nothing but loopback."""
    code = (
        "import subprocess, sys\n"
        "subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)\n"
        f"sys.exit(subprocess.run([{str(small.python)!r}, '-P', '-m', 'flows.cli', 'run',"
        " 'recipes/small.yaml', '--set', 'name=offline', '--json']).returncode)\n"
    )
    done = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", code],
        cwd=small.folder,
        env=small.environment(),
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"registered"' in done.stdout
