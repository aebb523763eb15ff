"""A stand-in for the Hub on loopback, and recipes as short texts."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT_A = "a" * 40
COMMIT_B = "b" * 40

SMALL_MODEL = {
    "config.json": b'{"model_type": "phi3"}',
    "model.safetensors": b"weights of commit a",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "onnx/model.safetensors": b"the same weights in another format",
}


@dataclass
class HubStandIn:
    """What the Hub is for the resolver: branches, file lists, files. `requests` counts every call."""

    url: str = ""
    branches: dict[str, str] = field(default_factory=lambda: {"main": COMMIT_A})
    files: dict[str, bytes] = field(default_factory=lambda: dict(SMALL_MODEL))
    failure: tuple[int, str] | None = None
    """(status, X-Error-Code) for every call."""
    requests: list[str] = field(default_factory=list)
    model: str = "team/base"

    def answer(self, method: str, target: str) -> tuple[int, dict[str, str], bytes]:
        path = unquote(urlsplit(target).path)
        self.requests.append(f"{method} {path}")
        if self.failure is not None:
            status, code = self.failure
            return status, {"X-Error-Code": code}, b'{"error": "no"}'
        for prefix, reply in (
            (f"/api/models/{self.model}/revision/", self._revision),
            (f"/api/models/{self.model}/tree/", self._tree),
            (f"/{self.model}/resolve/", self._resolve),
        ):
            if path.startswith(prefix):
                return reply(path.removeprefix(prefix))
        return 404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}'

    def _revision(self, name: str) -> tuple[int, dict[str, str], bytes]:
        commit = self.branches.get(name, name if name in self.branches.values() else None)
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b'{"error": "Invalid rev id"}'
        return _json({"id": self.model, "modelId": self.model, "sha": commit, "siblings": []})

    def _tree(self, commit: str) -> tuple[int, dict[str, str], bytes]:
        return _json(
            [
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in self.files.items()
            ]
        )

    def _resolve(self, rest: str) -> tuple[int, dict[str, str], bytes]:
        commit, _, name = rest.partition("/")
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        data = self.files[name]
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{_etag(data)}"'}, data


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """The stand-in, running, with an empty Hub cache and huggingface_hub pointed at both."""
    from huggingface_hub import constants

    stand_in = HubStandIn()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self, with_body: bool) -> None:
            status, headers, body = stand_in.answer(self.command, self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def do_GET(self) -> None:
            self._reply(with_body=True)

        def do_HEAD(self) -> None:
            self._reply(with_body=False)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
    template = stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield stand_in
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """`write_recipe(text)` -> a recipe file whose first five lines are a valid head."""

    def write(text: str = "", head: str | None = None) -> Path:
        if head is None:
            head = (
                "name: test\n"
                "base: ./base\n"
                "dataset:\n"
                "  sources:\n"
                "    - {type: jsonl, path: rows.jsonl}\n"
            )
        path = tmp_path / "recipe.yaml"
        path.write_text(head + text, encoding="utf-8")
        return path

    return write
