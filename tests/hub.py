"""A stand-in for the Hugging Face Hub on loopback, which speaks the calls of Hugging Face's own libraries."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback import serving

A, B = "a" * 40, "b" * 40
"""Two commits."""

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


@dataclass
class Repository:
    """Branches, and the files of each commit."""

    files: dict[str, dict[str, bytes]]
    branches: dict[str, str] = field(default_factory=lambda: {"main": A})

    def commit(self, revision: str) -> str | None:
        """What a branch or a commit names."""
        return self.branches.get(revision, revision if revision in self.files else None)

    def entries(self, commit: str) -> list[dict[str, Any]]:
        """Its files, and the folders that they lie in."""
        files = self.files[commit]
        folders = sorted({name.rpartition("/")[0] for name in files} - {""})
        return [
            *(
                {"type": "directory", "path": name, "size": 0, "oid": _etag(name.encode())}
                for name in folders
            ),
            *(
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in files.items()
            ),
        ]

    def file(self, revision: str, name: str) -> Answer:
        commit = self.commit(revision) or ""
        data = self.files.get(commit, {}).get(name)
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{_etag(data)}"'}, data


@dataclass
class Hub:
    """Models and datasets by their ids. `requests` counts every call."""

    url: str = ""
    models: dict[str, Repository] = field(default_factory=dict)
    datasets: dict[str, Repository] = field(default_factory=dict)
    failure: tuple[int, str] | None = None
    """(status, X-Error-Code) for every call."""
    requests: list[str] = field(default_factory=list)
    authorizations: set[str | None] = field(default_factory=set)
    """What callers showed to be let in."""

    def answer(self, method: str, target: str, body: bytes) -> Answer:
        path = unquote(urlsplit(target).path)
        self.requests.append(f"{method} {path}")
        if self.failure is not None:
            return self.failure[0], {"X-Error-Code": self.failure[1]}, b'{"error": "no"}'
        for kind, files, known in (
            ("models", "/", self.models),
            ("datasets", "/datasets/", self.datasets),
        ):
            for id, repository in known.items():
                if path.startswith(resolve := f"{files}{id}/resolve/"):
                    return repository.file(*path.removeprefix(resolve).split("/", 1))
                if f"{path}/".startswith(api := f"/api/{kind}/{id}/"):
                    return _described(repository, id, path[len(api) :], target, body)
        return 404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}'


def _described(repository: Repository, id: str, what: str, target: str, body: bytes) -> Answer:
    """What the Hub tells of a repository: its commit, or its files."""
    call, _, rest = what.partition("/")
    revision, _, below = rest.partition("/")
    commit = repository.commit(revision or "main")
    if commit is None:
        return 404, {"X-Error-Code": "RevisionNotFound"}, b'{"error": "Invalid rev id"}'
    entries = repository.entries(commit)
    if call == "paths-info":
        wanted = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
        return _json([entry for entry in entries if entry["path"] in wanted])
    if call == "tree":
        start = f"{below}/" if below else ""
        found = [entry for entry in entries if entry["path"].startswith(start)]
        if "recursive=true" not in urlsplit(target).query.lower():
            found = [entry for entry in found if "/" not in entry["path"].removeprefix(start)]
        return _json(found)
    siblings = [{"rfilename": name} for name in repository.files[commit]]
    return _json({"id": id, "modelId": id, "sha": commit, "siblings": siblings, "tags": []})


@contextmanager
def running_hub() -> Iterator[Hub]:
    """An empty one that answers at its `url`."""
    stand_in = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            stand_in.authorizations.add(self.headers.get("Authorization"))
            status, headers, content = stand_in.answer(self.command, self.path, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_GET(self) -> None:
            self.do_POST()

        def do_HEAD(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as stand_in.url:
        yield stand_in


def _json(value: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
