"""The same registration through a real MLflow server: its files travel over HTTP, both ways."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.registration.prediction import Row, answer_rows
from tasks.registry import CHAMPION, current_champion
from tasks.stack import answers
from tasks.tracking import Tracker


@pytest.fixture
def server(migrated_database: Path, tmp_path: Path) -> Iterator[str]:
    """A tracking server with a database and an artifact store of its own."""
    folder = tmp_path / "server"
    folder.mkdir()
    database = folder / "mlflow.db"
    database.write_bytes(migrated_database.read_bytes())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "mlflow", "server", "--host", "127.0.0.1"),
                *("--port", str(port), "--workers", "1"),
                *("--backend-store-uri", f"sqlite:///{database}"),
                *("--artifacts-destination", str(folder / "artifacts")),
            ],
            cwd=folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 120
            while not answers(f"{url}/health"):
                assert process.poll() is None, (folder / "log.txt").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield url
        finally:
            os.killpg(process.pid, 9)
            process.wait()


@pytest.mark.slow
def test_a_version_travels_through_a_tracking_server_and_comes_back_whole(
    own_trained: Any, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.chdir(own_trained.project)
    home = own_trained.home
    tracker = Tracker(home)
    assert tracker.uri == server
    assert not tracker.owns_artifacts
    # Uploaded, compared, and verified in a fresh process that downloads it.
    version = own_trained.register(tracker)
    assert (version.version, version.aliases) == ("1", ["challenger"])
    assert own_trained.register(tracker).version == "1"
    tracker.client.set_registered_model_alias("tiny", CHAMPION, "1")
    champion = current_champion(tracker, "tiny", home)
    assert champion is not None
    assert champion.folder.is_relative_to(home.cache)
    # The second time it is here already; a damaged copy is fetched anew.
    weights = champion.folder / "adapter_model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + b"\x00")
    again = current_champion(tracker, "tiny", home)
    assert again is not None
    assert weights.read_bytes() == original
    # The base is found by the recipe's path, from the working directory.
    answer = answer_rows(
        [Row("--prompt", {"prompt": "Who?"})],
        tracker=tracker,
        uri="models:/tiny@champion",
        base=None,
        home=home,
        max_tokens=3,
    )
    assert answer[0].finish_reason in ("stop", "length")
    assert list(home.work.iterdir()) == []
    assert not (home.mlflow / "artifacts").exists()
    assert tracker.version_url("tiny", "1") == f"{server}/#/models/tiny/versions/1"
