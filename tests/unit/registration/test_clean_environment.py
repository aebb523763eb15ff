"""A version loads where nothing but its own pinned requirements is installed, and MLflow's server answers with it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from tasks.registry import model_files, model_id_of

ASK = """
import importlib.util, json, sys
assert importlib.util.find_spec("tasks") is None, "loraline is on the path"
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict({"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 2})
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def tiny_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base, wide enough for 4-bit weights: they share a scale by sixty-four."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = Path(shutil.copytree(tiny_base, tmp_path_factory.mktemp("wide") / "base"))
    config = AutoConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size = 64, 128
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def requirements_of(tracker: Any, home: Any, number: str) -> str:
    version = tracker.client.get_model_version("tiny", number)
    with model_files(tracker, model_id_of(version), home) as folder:
        return (folder / "requirements.txt").read_text()


class Environment:
    """A virtual environment of its own."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
        self.python = folder / "bin" / "python"

    def pip(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self.python, "-m", "pip", "--no-cache-dir", "install", "--no-compile"]
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=1500, check=False
        )

    def ask(self, uri: str, cwd: Path, environment: dict[str, str]) -> dict[str, Any]:
        # -I: neither PYTHONPATH nor the working directory are on its path.
        done = subprocess.run(
            [self.python, "-I", "-c", ASK, uri],
            cwd=cwd,
            env={
                **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer


@pytest.fixture
def environment(tmp_path: Path, own_trained: Any) -> Environment:
    """An empty one; skips where pip cannot have torch and packages from an index."""
    made = Environment(tmp_path / "environment")
    import jinja2
    import torch

    for name in (f"torch=={torch.__version__.partition('+')[0]}", f"jinja2=={jinja2.__version__}"):
        probe = made.pip("--dry-run", "--no-deps", name)
        if probe.returncode != 0:
            pytest.skip(f"pip cannot have {name} here: {probe.stderr.strip()[-200:]}")
    return made


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("unverified")
def test_versions_load_from_their_own_requirements_alone(
    own_trained: Any, environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_trained.project)
    tracker, home = own_trained.tracker(), own_trained.home
    own_trained.register(tracker)
    # The same adapter on the base in nf4 is what a QLoRA run registers; its files are its own.
    fixture = own_trained.adapter.path / "fixture.json"
    fixture.write_text(json.dumps({**json.loads(fixture.read_text()), "quantization": "nf4"}))
    config = own_trained.adapter.folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "revision": "nf4"}))
    own_trained.register(tracker)
    values = {**home.environment(), "MLFLOW_TRACKING_URI": tracker.uri}
    for number in ("1", "2"):
        pins = tmp_path / f"requirements-{number}.txt"
        pins.write_text(requirements_of(tracker, home, number))
        assert ("bitsandbytes==" in pins.read_text()) == (number == "2")
        installed = environment.pip("--requirement", str(pins))
        assert installed.returncode == 0, installed.stderr[-2000:]
        answer = environment.ask(f"models:/tiny/{number}", own_trained.project, values)
        assert answer["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.fixture
def served(own_trained: Any, unverified: None, tmp_path: Path) -> Iterator[str]:
    """`mlflow models serve` with version 1 on a free port of this machine."""
    tracker = own_trained.tracker()
    before = Path.cwd()
    os.chdir(own_trained.project)
    try:
        own_trained.register(tracker)
    finally:
        os.chdir(before)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = tmp_path / "serve.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "mlflow", "models", "serve"),
                *("--model-uri", "models:/tiny/1", "--env-manager", "local"),
                *("--host", "127.0.0.1", "--port", str(port)),
            ],
            cwd=own_trained.project,
            env={
                **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                **own_trained.home.environment(),
                "MLFLOW_TRACKING_URI": tracker.uri,
                # It starts programs of its environment by their names.
                "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            },
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 300
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                try:
                    with urllib.request.urlopen(f"{url}/ping", timeout=5):
                        break
                except (URLError, OSError):
                    time.sleep(0.5)
            yield url
        finally:
            os.killpg(process.pid, 9)
            process.wait()


@pytest.mark.slow
def test_mlflow_s_own_server_answers_chats_at_invocations(served: str) -> None:
    request = {"messages": [{"role": "user", "content": "Who returns it?"}], "max_tokens": 3}
    asked = urllib.request.Request(
        f"{served}/invocations",
        data=json.dumps(request).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=120) as response:
        answer = json.load(response)
    answer = answer[0] if isinstance(answer, list) else answer
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    assert answer["usage"]["completion_tokens"] <= 3
