"""The wheel works without the clone: shared files are package data, workers find our modules."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(folder),
            str(ROOT),
        ],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("loraline-*.whl"))


def _environment(folder: Path, wheel: Path, *, dependencies: bool) -> Path:
    """A virtual environment with the wheel; its Python.

    Without `dependencies` it sees this environment's libraries through a path file, which names
    their folder but not the clone: installing them anew takes minutes and the network.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    if not dependencies:
        site = next((folder / "lib").glob("python*/site-packages"))
        (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    install = [str(python), "-m", "pip", "install", "--quiet"]
    if dependencies:
        subprocess.run([*install, "-r", str(ROOT / "requirements.lock")], check=True)
    subprocess.run([*install, "--no-deps", str(wheel)], check=True)
    return python


@pytest.mark.parametrize(
    "dependencies", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["shared", "own"]
)
def test_the_wheel_runs_in_a_folder_that_has_its_own_tasks_module(
    wheel: Path, tmp_path: Path, dependencies: bool
) -> None:
    python = _environment(tmp_path / "venv", wheel, dependencies=dependencies)
    folder = tmp_path / "team"
    folder.mkdir()
    (folder / "tasks.py").write_text("raise RuntimeError('a stranger was imported')\n")
    (folder / "rows.jsonl").write_text(
        "".join(
            f'{{"prompt": "Say the number {n}.", "completion": "The number is {n}."}}\n'
            for n in range(60)
        )
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LORALINE_HOME")}
    environment["HOME"] = str(tmp_path / "user-home")

    def loraline(*arguments: str) -> str:
        done = subprocess.run(
            [str(python.parent / "loraline"), *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=580,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    where = subprocess.run(
        [str(python), "-P", "-c", "import tasks; print(tasks.__file__)"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(tmp_path / "venv") in where, "the clone was imported, not the wheel"
    loraline("init", ".", "--data", "rows.jsonl", "--name", "numbers")
    out = loraline(
        "run",
        "recipes/numbers.yaml",
        "--json",
        "--set",
        "training.training_config.max_steps=2",
        "--set",
        "evaluation.max_new_tokens=8",
        "--set",
        "evaluation.gate=[]",
        "--set",
        "evaluation.bootstrap_samples=100",
    )
    assert '"outcome": "registered"' in out
    schema = loraline("schema")
    assert '"peft_config"' in schema
