"""`loraline run` around the flow: one JSON object, exit codes, Ctrl-C. The flow itself is replaced."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flows.cli import main
from tasks.errors import StageFailed
from tasks.progress import announce

RECIPE = """\
name: small
base: {base}
dataset:
  sources:
    - {{type: jsonl, path: rows.jsonl}}
"""

KEYS = {
    *("outcome", "reason", "prefect_flow_run_id", "mlflow_run_id", "model_version", "stages"),
    *("metrics", "differences", "gate", "trainable_parameters", "report"),
}


@pytest.fixture
def recipe(tmp_path: Path, starter: Path) -> Path:
    path = tmp_path / "recipes" / "small.yaml"
    path.parent.mkdir()
    path.write_text(RECIPE.format(base=starter))
    (path.parent / "rows.jsonl").write_text('{"prompt": "Question?", "completion": "Answer."}\n')
    return path


Flow = Callable[..., dict[str, Any]]


@pytest.fixture
def replace_flow(monkeypatch: pytest.MonkeyPatch, answering_api: str) -> Callable[[Flow], None]:
    """Put a function in the flow's place; Prefect is the user's, so none is started."""

    def replace(flow: Flow) -> None:
        module = ModuleType("flows.retrain")
        module.retrain = flow  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "flows.retrain", module)
        monkeypatch.setenv("PREFECT_API_URL", answering_api)

    return replace


def loraline(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "flows.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("outcome", "code"),
    [("registered", 0), ("skipped", 0), ("awaiting_approval", 0), ("refused", 3), ("failed", 1)],
)
def test_the_outcome_decides_the_exit_code(
    recipe: Path,
    replace_flow: Callable[[Flow], None],
    capfd: pytest.CaptureFixture[str],
    outcome: str,
    code: int,
) -> None:
    def flow(recipe: str, overrides: list[str], force: bool) -> dict[str, Any]:
        print("a library prints")
        os.system("echo a child prints")
        return {"outcome": outcome, "reason": "because"}

    replace_flow(flow)
    assert main(["run", str(recipe), "--json"]) == code
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert set(answer) == KEYS
    assert (answer["outcome"], answer["reason"]) == (outcome, "because")
    assert "a library prints" in err
    assert "a child prints" in err


def test_the_flow_gets_what_the_command_line_says(
    recipe: Path, replace_flow: Callable[[Flow], None]
) -> None:
    got: dict[str, Any] = {}

    def flow(**arguments: Any) -> dict[str, Any]:
        got.update(arguments)
        return {"outcome": "registered", "reason": ""}

    replace_flow(flow)
    settings = ["--set", "seed=7", "--set", "training.peft_config.r=8"]
    assert main(["run", str(recipe), *settings, "--force"]) == 0
    overrides = ["seed=7", "training.peft_config.r=8"]
    assert got == {"recipe": str(recipe), "overrides": overrides, "force": True}


def test_a_failed_run_tells_how_far_it_got(
    recipe: Path, replace_flow: Callable[[Flow], None], capfd: pytest.CaptureFixture[str]
) -> None:
    stage = {"fingerprint": "ab12", "reused": True, "seconds": 0.5}

    def flow(**_: Any) -> dict[str, Any]:
        announce("stage", stage="dataset", state="reused", seconds=0.5)
        known = {"outcome": "failed", "reason": "did not finish", "mlflow_run_id": "run-7"}
        announce("outcome", outcome={**known, "stages": {"dataset": stage}})
        announce("stage", stage="training", state="started")
        raise StageFailed("Training stopped with exit code 9 after step 40.")

    replace_flow(flow)
    assert main(["run", str(recipe), "--json"]) == 1
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert answer["outcome"] == "failed"
    assert answer["reason"] == "Training stopped with exit code 9 after step 40."
    assert answer["stages"] == {"dataset": stage}
    assert answer["mlflow_run_id"] == "run-7"
    assert "dataset: complete already, reused (0.5 s)" in err
    assert "error: Training stopped with exit code 9" in err
    assert "Traceback" not in err


def test_what_nobody_foresaw_is_one_object_too(
    recipe: Path, replace_flow: Callable[[Flow], None], capfd: pytest.CaptureFixture[str]
) -> None:
    def flow(**_: Any) -> dict[str, Any]:
        raise ZeroDivisionError("division by zero")

    replace_flow(flow)
    assert main(["run", str(recipe), "--json"]) == 1
    out, err = capfd.readouterr()
    assert "ZeroDivisionError: division by zero" in json.loads(out)["reason"]
    assert "Traceback" not in err


def test_a_person_gets_the_summary_on_standard_output(
    recipe: Path, replace_flow: Callable[[Flow], None], capfd: pytest.CaptureFixture[str]
) -> None:
    version = {"name": "small", "version": "1", "uri": "models:/small/1", "aliases": ["champion"]}
    values = {"base": {"loss": 3.0}, "champion": None, "challenger": {"loss": 2.0}}

    def flow(**_: Any) -> dict[str, Any]:
        return {
            "outcome": "registered",
            "reason": "version 1",
            "model_version": version,
            "metrics": values,
        }

    replace_flow(flow)
    assert main(["run", str(recipe)]) == 0
    out = capfd.readouterr().out
    assert "Registered: version 1" in out
    assert "loraline predict models:/small@champion" in out


def test_a_broken_recipe_is_one_object_with_every_mistake_within_seconds(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("nam: small\nseed: minus one\ndataset:\n  sources: []\n")
    began = time.monotonic()
    done = loraline("run", str(path), "--json")
    seconds = time.monotonic() - began
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert answer["outcome"] == "failed"
    for place in (f"{path}:1", f"{path}:2", f"{path}:4"):
        assert place in answer["reason"]
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    # Nothing is started for it and nothing is written; a second, and some for a busy machine.
    assert seconds < 5
    assert not Path(os.environ["LORALINE_HOME"]).exists()


def test_a_mistake_in_an_override_is_exit_code_2(recipe: Path) -> None:
    done = loraline("run", str(recipe), "--set", "training.peft_confg.r=8", "--json")
    assert done.returncode == 2
    assert "peft_confg" in json.loads(done.stdout)["reason"]


def test_data_and_base_that_are_not_here_are_told_with_their_lines_before_anything_starts(
    recipe: Path,
) -> None:
    recipe.write_text(RECIPE.format(base="../gone").replace("rows.jsonl", "gone.jsonl"))
    done = loraline("run", str(recipe), "--json")
    assert done.returncode == 2
    reason = json.loads(done.stdout)["reason"]
    assert f"{recipe}:2: base: ../gone is " in reason
    assert f"{recipe}:5: dataset.sources.0.path: " in reason
    assert not Path(os.environ["LORALINE_HOME"]).exists()


def test_an_mlflow_server_that_is_not_there_is_told_within_seconds(recipe: Path) -> None:
    began = time.monotonic()
    done = loraline("run", str(recipe), "--json", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 1
    assert time.monotonic() - began < 10
    reason = json.loads(done.stdout)["reason"]
    assert (
        "MLflow server http://127.0.0.1:9, named by MLFLOW_TRACKING_URI, does not answer" in reason
    )
    # No stage ran and no server was started for it.
    root = Path(os.environ["LORALINE_HOME"])
    assert not (root / "store").exists()
    assert not (root / "prefect").exists()


# A whole `loraline run` whose flow trains nothing: its worker waits, and keeps a checkpoint when it
# is asked to end, as the training worker does.
INTERRUPTIBLE = """
import os, sys
from pathlib import Path
from types import ModuleType

from tasks import launch

folder, stubborn = Path(sys.argv[1]), sys.argv[2] == "stubborn"

WORKER = '''
import json, signal, sys, time
from pathlib import Path
from pydantic import BaseModel
from tasks.worker import emit, main

class Job(BaseModel):
    folder: Path
    stubborn: bool

def work(job):
    def checkpoint(*_):
        if not job.stubborn:
            (job.folder / "checkpoint").write_text("kept")
            sys.exit(0)
    signal.signal(signal.SIGTERM, checkpoint)
    (job.folder / "started").write_text("")
    while True:
        emit("step", step=1, total_steps=2)
        time.sleep(0.1)

main(Job, work)
'''

def retrain(**_):
    from tasks.errors import Interrupted
    import json
    (folder / "job.json").write_text(json.dumps({"folder": str(folder), "stubborn": stubborn}))
    launch.run([sys.executable, "-c", WORKER, str(folder / "job.json")],
               log=folder / "worker.log", name="Training")

module = ModuleType("flows.retrain")
module.retrain = retrain
sys.modules["flows.retrain"] = module
from flows.cli import main
sys.exit(main(["run", sys.argv[3], "--set", "seed=7", "--json"]))
"""


def interrupted_run(
    folder: Path, recipe: Path, api: str, presses: int, *, stubborn: bool
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a run that gets Ctrl-C while it trains."""
    kind = "stubborn" if stubborn else "willing"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", INTERRUPTIBLE, str(folder), kind, str(recipe)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PREFECT_API_URL": api},
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (folder / "started").exists():
        assert time.monotonic() < deadline, "the worker did not start"
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    for _ in range(presses):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_ctrl_c_keeps_the_checkpoint_and_says_how_to_go_on(
    tmp_path: Path, recipe: Path, answering_api: str
) -> None:
    code, out, err = interrupted_run(tmp_path, recipe, answering_api, 1, stubborn=False)
    assert code == 130
    assert (tmp_path / "checkpoint").read_text() == "kept"
    assert f"loraline run {recipe} --set seed=7" in err
    assert "Traceback" not in err
    answer = json.loads(out)
    assert answer["outcome"] == "failed"
    assert "interrupted" in answer["reason"]


def test_a_second_ctrl_c_ends_at_once_and_takes_the_worker_along(
    tmp_path: Path, recipe: Path, answering_api: str
) -> None:
    began = time.monotonic()
    code, out, _ = interrupted_run(tmp_path, recipe, answering_api, 2, stubborn=True)
    assert code == 130
    assert json.loads(out)["outcome"] == "failed"
    assert not (tmp_path / "checkpoint").exists()
    size = (tmp_path / "worker.log").stat().st_size
    time.sleep(1.0)
    # The worker wrote ten lines a second.
    assert (tmp_path / "worker.log").stat().st_size <= size + 200
    assert time.monotonic() - began < 40
