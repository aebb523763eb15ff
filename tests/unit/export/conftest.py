"""A registered version with papers that hold secrets and paths, a stand-in for the Hub's writing API."""

import base64
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tasks.home import Home
from tasks.registration.job import Verification
from tasks.tracking import Tracker
from tests.loopback import serving

SECRET = "hf_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3z"
RECIPE = f"""\
name: tiny
description: Documents functions.
base: ../base
seed: 7
dataset:
  sources:
    - {{type: sql, url: "postgresql://ada:hunter2secret@db.internal/rows"}}
tokenization: {{max_length: 64}}
training:
  peft_config: {{r: 4, lora_alpha: 8}}
  training_config: {{learning_rate: 0.004, output_dir: /srv/ada/out}}
  hub_token: {SECRET}
evaluation:
  judge: {{url: "http://ada:hunter2secret@judge.internal/v1", api_key: whatever-it-is}}
  metrics_folder: /home/ada/metrics
"""


def _registration() -> Any:
    """The builders of the registration's tests: the same small version, registered the same way."""
    path = Path(__file__).parents[1] / "registration" / "conftest.py"
    spec = importlib.util.spec_from_file_location("registration_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up.
    sys.modules["registration_conftest"] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Project:
    """A project's folder with a registered version `tiny`."""

    trained: Any
    tracker: Tracker

    @property
    def home(self) -> Home:
        return self.tracker.home

    @property
    def base(self) -> Path:
        return Path(self.trained.base.path)

    @property
    def model(self) -> Path:
        """The files of version 1 in MLflow's store."""
        from tasks.registry import local_path, model_id_of

        version = self.tracker.client.get_model_version("tiny", "1")
        model = self.tracker.client.get_logged_model(model_id_of(version))
        found = local_path(model.artifact_location)
        assert found is not None
        return found

    def seal(self) -> None:
        """Have the registry vouch for version 1 as its files are now."""
        from tasks.store import digest
        from tasks.version_manifest import adapter_manifest, write_manifest

        base = self.trained.base.weights_sha256
        manifest = adapter_manifest(self.model / "artifacts" / "adapter", base)
        tags = {
            "loraline.files_sha256": write_manifest(self.model, base),
            "loraline.fingerprint": digest(manifest),
        }
        for name, value in tags.items():
            self.tracker.client.set_model_version_tag("tiny", "1", name, value)


def build_project(
    folder: Path, tiny_base: Path, database: Path, *, quantization: str | None = None
) -> Project:
    builders = _registration()
    trained = builders.build_trained(folder, tiny_base, database)
    trained.recipe.write_text(RECIPE)
    card = {
        "digest": "a" * 64,
        "rows": {"train": 1234, "test": 56},
        "dropped": {"duplicate": 7, "of /home/ada/rows.jsonl": 3},
    }
    (trained.dataset.path / "card.json").write_text(json.dumps(card))
    if quantization:
        fixture = trained.adapter.path / "fixture.json"
        values = json.loads(fixture.read_text())
        fixture.write_text(json.dumps({**values, "quantization": quantization}))
    gate = {
        "passed": True,
        "rules": [
            {"rule": "rougeL grows", "passed": True, "rows": 56, "value": 0.4, "why": "enough"}
        ],
    }
    report = trained.report.model_copy(update={"gate": gate})
    report.metrics["challenger"]["broken"] = float("nan")
    trained = replace(trained, report=report)
    tracker = trained.tracker()
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.registration.work.verify_version", _verified)
        os.chdir(folder)
        try:
            trained.register(tracker)
        finally:
            os.chdir(before)
    return Project(trained, tracker)


def _verified(*_: object, **__: object) -> Verification:
    return Verification(
        rows=1,
        positions=4,
        dtype="float32",
        largest_difference=0.0,
        tolerance=1e-4,
        adapter_effect=1.0,
        answer="",
        finish_reason="stop",
        seconds=0.0,
    )


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; creating one takes seconds, copying it nothing."""
    home = Home(tmp_path_factory.mktemp("database").resolve())
    _ = Tracker(home).client
    return home.mlflow / "mlflow.db"


@pytest.fixture(scope="session")
def project(tiny_base: Path, migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Read by all tests, changed by none."""
    return build_project(tmp_path_factory.mktemp("project").resolve() / "p", tiny_base, migrated)


@pytest.fixture
def own_project(tiny_base: Path, migrated: Path, tmp_path: Path) -> Project:
    """For a test that breaks something."""
    return build_project((tmp_path / "project").resolve(), tiny_base, migrated)


@pytest.fixture
def quantized_project(tiny_base: Path, migrated: Path, tmp_path: Path) -> Project:
    """A version that says it was trained on an nf4 base."""
    folder = (tmp_path / "project").resolve()
    return build_project(folder, tiny_base, migrated, quantization="nf4")


@dataclass
class HubStandIn:
    """What the Hub is for a push: who am I, create, preupload, LFS, commit. Keeps what it was sent."""

    url: str = ""
    token: str = SECRET
    repositories: dict[str, bool] = field(default_factory=dict)
    """Name -> private."""
    files: dict[str, bytes] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    cards: list[str] = field(default_factory=list)
    full: bool = False
    """Refuses commits, as the Hub does when a storage quota is used up."""

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any]:
        self.calls.append(f"{method} {path}")
        if path.startswith("/lfs/"):
            self.objects[path.removeprefix("/lfs/")] = body
            return 200, {}
        if headers.get("Authorization") not in (f"Bearer {self.token}", self._basic()):
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            return 200, {"name": "ada", "type": "user", "auth": {}}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'ada'}/{asked['name']}"
            if name in self.repositories:
                return 409, {"error": "exists", "url": f"{self.url}/{name}"}
            private = asked.get("private") is True or asked.get("visibility") == "private"
            self.repositories[name] = private
            return 200, {"url": f"{self.url}/{name}", "name": name, "id": name}
        if path == "/api/validate-yaml":
            self.cards.append(json.loads(body)["content"])
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            return 200, {"files": [self._mode(one["path"]) for one in json.loads(body)["files"]]}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if path.endswith("/commit/main"):
            return self._commit(path, body)
        name = path.removeprefix("/api/models/")
        if name in self.repositories:
            return 200, {"id": name, "private": self.repositories[name], "siblings": []}
        return 404, {"error": "Repository not found"}

    def _basic(self) -> str:
        return "Basic " + base64.b64encode(f"user:{self.token}".encode()).decode()

    def _mode(self, path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith((".safetensors", ".gguf", ".pt")) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def _commit(self, path: str, body: bytes) -> tuple[int, Any]:
        if self.full:
            return 507, {"error": "Storage is full"}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                data = self.objects[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"]
                self.files[value["path"]] = data
        name = path.removeprefix("/api/models/").removesuffix("/commit/main")
        oid = "c" * 40
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """The stand-in, running, with huggingface_hub pointed at it, and nobody's token."""
    from huggingface_hub import constants

    stand_in = HubStandIn()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else self._chunks()
            path = self.path.partition("?")[0]
            status, value = stand_in.answer(self.command, path, self.headers, body)
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if path.startswith("/api/models/") and status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _chunks(self) -> bytes:
            data = b""
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            return data

        do_GET = do_POST = do_PUT = _reply  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as stand_in.url:
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # The chunk store is a service of its own; without it files go by Git LFS, as to any mirror.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield stand_in
