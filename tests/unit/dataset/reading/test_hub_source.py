"""Datasets of the Hub, from a stand-in on loopback that speaks the calls of Hugging Face's own library."""

import hashlib
import io
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow
import pytest
from pyarrow import parquet

from tasks.dataset.reading.bad_rows import BadRows
from tasks.errors import DataError, UserError

A, B = "a" * 40, "b" * 40
SOURCE = {"type": "huggingface", "id": "team/chats"}


def table(*prompts: str) -> bytes:
    sink = io.BytesIO()
    rows = [{"prompt": p, "completion": "b", "tags": None} for p in prompts]
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


@dataclass
class Hub:
    """Branches, and the files of each commit. `requests` counts every call."""

    url: str = ""
    branches: dict[str, str] = field(default_factory=lambda: {"main": A})
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    failure: tuple[int, str] | None = None
    requests: list[str] = field(default_factory=list)

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        path = unquote(urlsplit(target).path)
        self.requests.append(f"{method} {path}")
        if self.failure is not None:
            return self.failure[0], {"X-Error-Code": self.failure[1]}, b'{"error": "no"}'
        api, resolve = "/api/datasets/team/chats", "/datasets/team/chats/resolve/"
        if path.startswith(resolve):
            return self._file(*path.removeprefix(resolve).split("/", 1))
        if path != api and not path.startswith(f"{api}/"):
            return 404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}'
        call, _, rest = path.removeprefix(api).lstrip("/").partition("/")
        revision, _, below = rest.partition("/")
        commit = self._commit(revision or "main")
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b'{"error": "Invalid rev id"}'
        entries = self._entries(commit)
        if call == "paths-info":
            wanted = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
            return _json([entry for entry in entries if entry["path"] in wanted])
        if call == "tree":
            start = f"{below}/" if below else ""
            found = [entry for entry in entries if entry["path"].startswith(start)]
            if "recursive=true" not in urlsplit(target).query.lower():
                found = [entry for entry in found if "/" not in entry["path"].removeprefix(start)]
            return _json(found)
        siblings = [{"rfilename": name} for name in self.files[commit]]
        return _json({"id": "team/chats", "sha": commit, "siblings": siblings, "tags": []})

    def _commit(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.files else None)

    def _entries(self, commit: str) -> list[dict[str, Any]]:
        """Files and the folders that they lie in."""
        folders = sorted({name.rpartition("/")[0] for name in self.files[commit]} - {""})
        return [
            *(
                {"type": "directory", "path": f, "size": 0, "oid": _etag(f.encode())}
                for f in folders
            ),
            *(
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in self.files[commit].items()
            ),
        ]

    def _file(self, revision: str, name: str) -> tuple[int, dict[str, str], bytes]:
        commit = self._commit(revision) or ""
        data = self.files.get(commit, {}).get(name)
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{_etag(data)}"'}, data


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, running; this process and the workers it starts are pointed at it."""
    from huggingface_hub import constants

    stand_in = Hub()
    stand_in.files = {
        A: {"data/train.parquet": table("1", "2"), "data/test.parquet": table("9")},
        B: {"data/train.parquet": table("1", "2", "3")},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
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

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    yield stand_in
    server.shutdown()
    thread.join()
    server.server_close()


def prompts(rows: Any) -> list[str]:
    return [row.messages[0]["content"] for row in rows]


def test_a_branch_is_read_at_its_commit_which_stands_in_the_identity(hub, reader) -> None:
    (source,) = reader.opened(SOURCE)

    assert source.identity["commit"] == A
    assert source.name == "team/chats"
    # Until the rows are wanted, the commit is all that is asked for.
    assert hub.requests == ["GET /api/datasets/team/chats/revision/main"]
    rows = list(source.rows(BadRows()))
    assert prompts(rows) == ["1", "2"]
    assert rows[1].source == "team/chats/train:2"
    assert source.counts["rows"] == 2
    assert source.counts["ignored_columns"] == ["tags"]


def test_rows_of_a_known_commit_are_not_fetched_again_and_a_new_one_is_another_source(
    hub, reader
) -> None:
    (first,) = reader.opened(SOURCE)
    list(first.rows(BadRows()))
    hub.requests.clear()
    (again,) = reader.opened(SOURCE)

    assert prompts(again.rows(BadRows())) == ["1", "2"]
    assert hub.requests == ["GET /api/datasets/team/chats/revision/main"]
    assert (again.digest, again.identity) == (first.digest, first.identity)
    hub.branches["main"] = B
    (moved,) = reader.opened(SOURCE)
    assert moved.digest != first.digest
    assert prompts(moved.rows(BadRows())) == ["1", "2", "3"]
    (pinned,) = reader.opened({**SOURCE, "revision": A})
    assert (pinned.digest, pinned.identity) == (first.digest, first.identity)


def test_a_split_is_chosen_and_a_missing_one_is_answered_with_those_that_are(hub, reader) -> None:
    (source,) = reader.opened({**SOURCE, "split": "test"})
    assert prompts(source.rows(BadRows())) == ["9"]

    (source,) = reader.opened({**SOURCE, "split": "holdout"})
    with pytest.raises(UserError, match=r"split 'holdout'.*its splits are train, test"):
        list(source.rows(BadRows()))


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ((401, "RepoNotFound"), r"shows no dataset 'team/chats' \(status 401\)"),
        ((403, "GatedRepo"), "is gated: accept its terms"),
        ((404, "RevisionNotFound"), "no branch, tag or commit 'main'"),
        ((503, ""), r"Cannot resolve the dataset team/chats@main .*status 503"),
    ],
)
def test_each_refusal_of_the_hub_names_its_way_out(failure, words, hub, reader) -> None:
    hub.failure = failure

    with pytest.raises(DataError, match=words):
        reader.opened(SOURCE)


def test_a_silent_hub_is_answered_by_the_last_run_with_a_warning(hub, reader, caplog) -> None:
    (first,) = reader.opened(SOURCE)
    list(first.rows(BadRows()))
    hub.failure = (503, "")

    with caplog.at_level(logging.WARNING):
        (again,) = reader.opened(SOURCE)

    assert prompts(again.rows(BadRows())) == ["1", "2"]
    assert f"taken at commit {A}, as in the last run" in caplog.text


def test_rows_of_a_commit_that_are_not_here_are_refused_in_words_when_the_hub_is_off(
    reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (source,) = reader.opened({**SOURCE, "revision": A})

    with pytest.raises(UserError) as refused:
        list(source.rows(BadRows()))

    message = str(refused.value)
    assert f"The rows of team/chats at commit {A} are not on this machine yet" in message
    assert "HF_HUB_OFFLINE" in message
    assert "Traceback" not in message


def test_nothing_of_the_library_is_loaded_here_and_nothing_left_in_the_home_folder(
    hub, reader, tmp_path: Path
) -> None:
    import subprocess
    import sys

    code = f"""
import sys
from pathlib import Path
from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.opening import open_source
from tasks.dataset.source_settings import HuggingFaceSource
source = HuggingFaceSource.model_validate({SOURCE!r})
opened = open_source(source, Path(), cache=Path({str(tmp_path / "cache")!r}))
assert len(list(opened.rows(BadRows()))) == 2
print([name for name in ("datasets", "torch", "transformers", "pandas") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
    assert not (tmp_path / "user-home").exists()
    assert not list((tmp_path / "cache").rglob("datasets"))


@pytest.mark.parametrize("id", ["a/b/c", "../chats", "team/chats@main", ""])
def test_what_is_no_id_is_refused_in_the_recipe(id, reader) -> None:
    with pytest.raises(ValueError, match="id"):
        reader.opened({**SOURCE, "id": id})
