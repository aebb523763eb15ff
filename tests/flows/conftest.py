"""A pipeline so small that it runs in a test: real stages, real servers, sixty rows, six steps."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.commands.ui import start_prefect
from flows.server_lock import ServerLock
from flows.servers import ServerProcess
from flows.stack.api import PrefectApi
from tasks.home import Home

RECIPE = """\
name: small
base: {base}
dataset:
  sources:
    - type: python_source
      package: json
    - type: python_source
      package: asyncio
  split:
    test: 0.1
    salt: small
tokenization:
  max_length: 512
  long_rows: drop
training:
  peft_config:
    r: 4
  training_config:
    max_steps: 6
    logging_steps: 2
    per_device_train_batch_size: 4
    learning_rate: 2.0e-3
evaluation:
  max_new_tokens: 12
  bootstrap_samples: 200
promotion:
  policy: automatic
"""


@dataclass
class Cli:
    """Runs `loraline` in a folder with a state folder of its own, as a user would."""

    folder: Path
    python: Path = Path(sys.executable)

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), "-P", "-m", "flows.cli", *arguments],
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=540,
        )

    def environment(self, **more: str) -> dict[str, str]:
        inherited = {
            k: v for k, v in os.environ.items() if k not in ("LORALINE_HOME", "PYTHONPATH")
        }
        home = self.folder / "user-home"
        return {
            **inherited,
            "HOME": str(home),
            "LORALINE_HOME": str(self.folder / ".loraline"),
            **more,
        }

    def json(self, *arguments: str, **environment: str) -> dict[str, Any]:
        done = self(*arguments, "--json", **environment)
        try:
            value = json.loads(done.stdout)
        except ValueError:
            pytest.fail(f"not one JSON object: {done.stdout!r}\n{done.stderr[-3000:]}")
        assert isinstance(value, dict)
        return {**value, "exit_code": done.returncode, "stderr": done.stderr}


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> Cli:
    """A folder with `recipes/small.yaml` in which nothing has run."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "recipes").mkdir()
    (folder / "recipes" / "small.yaml").write_text(RECIPE.format(base=starter))
    return Cli(folder)


@pytest.fixture(scope="session")
def first_run(fresh: Cli) -> dict[str, Any]:
    """The outcome of the first run of `recipes/small.yaml`."""
    return fresh.json("run", "recipes/small.yaml")


@pytest.fixture(scope="session")
def small(fresh: Cli, first_run: dict[str, Any]) -> Cli:
    """The folder after its first run, whichever test comes first."""
    return fresh


@pytest.fixture(scope="session")
def answering_api() -> Iterator[str]:
    """The address of a server that answers every request: a Prefect of the user's, as far as one asks."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def loraline() -> type[Cli]:
    """Makes the command line of another folder."""
    return Cli


@dataclass
class StandingServer:
    """A Prefect server with all its services, on the database of one folder's state."""

    home: Home
    url: str
    lock: ServerLock
    process: ServerProcess

    @property
    def api(self) -> PrefectApi:
        return PrefectApi(self.url)

    def execute(self, cli: Cli, run: str) -> "subprocess.Popen[str]":
        """The process of a deployment's run, as a worker starts it."""
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "prefect", "flow-run", "execute", run],
            env=cli.environment(PREFECT_API_URL=self.url),
            cwd=cli.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stop(self) -> None:
        """End it; a second time does nothing."""
        self.process.stop()
        self.lock.release()


@pytest.fixture
def standing_server() -> Iterator[Callable[[Path], StandingServer]]:
    """Starts a server for a folder's `.loraline`: unlike the tests' own one it runs automations and schedules."""
    started: list[StandingServer] = []

    def start(folder: Path) -> StandingServer:
        home = Home((folder / ".loraline").resolve())
        home.prepare()
        lock = ServerLock(home)
        assert lock.acquire("a test")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        process = start_prefect(home, lock, port)
        server = StandingServer(home, f"http://127.0.0.1:{port}/api", lock, process)
        started.append(server)
        process.wait_until(f"{server.url}/health")
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    """A Prefect server for flows that the test's own process runs; they end without a wait for a heartbeat."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture
def api(prefect_server: None) -> PrefectApi:
    """That server's, asked with patience: on SQLite it may be busy with its own services."""
    from prefect.settings import PREFECT_API_URL

    from tests.running_stack import PatientApi

    return PatientApi(str(PREFECT_API_URL.value()), timeout_seconds=60)
