"""The registration's workers: no address in a file, nothing left behind, failures in words."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import LoralineError, ServerAway, StageFailed, UserError, WorkerFailed
from tasks.home import Home
from tasks.registration import prediction
from tasks.registration.loading import load_version
from tasks.registration.prediction import Row, answer_rows
from tasks.registration.verification import verify_version
from tasks.tracking import Tracker

SECRET_URI = "https://somebody:secret@mlflow.example.org"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state")


@pytest.fixture
def _registry_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "check_registered", lambda *_: None)
    monkeypatch.setattr(prediction, "registered_files", lambda *_: nullcontext((Path(), None)))


def verify(tracker: Tracker, home: Home) -> None:
    verify_version(tracker, "models:/m-1", base=home.root, fixture=home.root, home=home)


def predict(tracker: Tracker, home: Home) -> None:
    rows = [Row("rows.jsonl:1", {"prompt": "Who?"})]
    answer_rows(rows, tracker=tracker, uri="models:/tiny/1", base=None, home=home)


@pytest.mark.usefixtures("_registry_is_not_asked")
@pytest.mark.parametrize("start", [verify, predict])
def test_the_registry_s_address_travels_in_the_environment_and_nothing_stays_on_disk(
    start: Any, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def die(argv: list[str], *, environment: dict[str, str], **named: Any) -> None:
        seen["argv"] = " ".join(argv)
        seen["environment"] = environment
        seen["files"] = {p.name: p.read_text() for p in home.root.rglob("*") if p.is_file()}
        seen.update(named)
        raise WorkerFailed("it died")

    monkeypatch.setattr("tasks.launch.run", die)
    with pytest.raises(WorkerFailed, match="it died"):
        start(Tracker(home, SECRET_URI), home)
    assert "job.json" in seen["files"]
    assert not [name for name, text in seen["files"].items() if "secret" in text]
    assert "secret" not in seen["argv"]
    assert seen["environment"]["MLFLOW_TRACKING_URI"] == SECRET_URI
    assert seen["environment"]["MLFLOW_REGISTRY_URI"] == SECRET_URI
    assert list(home.work.iterdir()) == []
    # Nobody is told to repeat by hand what is gone.
    assert seen["repeatable"] is False
    # Many rows take long; a version that hangs must not keep promotions waiting for ever.
    assert (seen["timeout_seconds"] is not None) == (start is verify)


def test_a_server_that_does_not_answer_fails_in_words_and_is_not_the_user_s_mistake(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import save_file

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    home.prepare()
    fixture = {"input_ids": [[1]], "dtype": "float32"}
    (home.root / "fixture.json").write_text(json.dumps(fixture))
    logits = np.zeros((1, 1, 2), np.float32)
    save_file({"logits": logits}, home.root / "fixture.safetensors")
    # What nobody watches waits for the server, then.
    with pytest.raises(ServerAway) as caught:
        verify(Tracker(home, "http://somebody:secret@127.0.0.1:9"), home)
    assert caught.value.exit_code == 1
    text = str(caught.value)
    assert text.startswith("MLflow at http://127.0.0.1:9 could not deliver models:/m-1")
    assert "Traceback" not in text
    assert str(home.logs / "verify-m-1.log") in text
    assert "secret" not in text
    assert "secret" not in (home.logs / "verify-m-1.log").read_text()
    assert list(home.work.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("RESOURCE_DOES_NOT_EXIST", UserError),
        ("INVALID_PARAMETER_VALUE", UserError),
        ("INTERNAL_ERROR", StageFailed),
        ("TEMPORARILY_UNAVAILABLE", StageFailed),
        ("PERMISSION_DENIED", StageFailed),
    ],
)
def test_only_a_version_that_is_not_there_is_the_user_s_mistake(
    code: str, kind: type[LoralineError], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ErrorCode

    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException(f"no, says {SECRET_URI}", ErrorCode.Value(code))

    monkeypatch.setattr(mlflow.pyfunc, "load_model", refuse)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SECRET_URI)
    with pytest.raises(kind, match="no, says https://mlflow") as caught:
        load_version("models:/tiny/1", {})
    assert type(caught.value) is kind


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_lack_of_memory_is_not_told_as_a_mistake_in_the_version(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc
    import torch

    def load(*_: Any, **__: Any) -> None:
        if device == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(mlflow.pyfunc, "load_model", load)
    with pytest.raises(RuntimeError, match=r"(?i)memory") as caught:
        load_version("models:/tiny/1", {})
    assert not isinstance(caught.value, LoralineError)
