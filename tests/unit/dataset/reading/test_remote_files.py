"""Rows behind URLs: a real S3-compatible server and a real web server, both on loopback."""

import functools
import gzip
import json
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tasks.dataset.reading import remote
from tasks.dataset.reading.remote_failures import refusal
from tasks.errors import DataError


def lines(*prompts: str) -> bytes:
    rows = ({"prompt": p, "completion": "b"} for p in prompts)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def prompts(found: Any) -> list[str]:
    return [row.messages[0]["content"] for row in found.rows]


@pytest.fixture
def put(shared_bucket: Any) -> Any:
    """Puts a file into the bucket."""
    return lambda key, content: shared_bucket.put_object(Key=key, Body=content)


@pytest.fixture
def s3(reader, s3_stand_in: str):
    return functools.partial(reader, storage_options={"endpoint_url": s3_stand_in})


@pytest.mark.parametrize(
    ("path", "expected", "sources"),
    [
        ("s3://shared/chats/b.jsonl", ["3"], ["b.jsonl:1"]),
        ("s3://shared/chats", ["0", "1", "3"], ["2026/c.jsonl.gz:1", "a.csv:2", "b.jsonl:1"]),
        ("s3://shared/chats/", ["0", "1", "3"], ["2026/c.jsonl.gz:1", "a.csv:2", "b.jsonl:1"]),
        ("s3://shared/chats/*.jsonl", ["3"], ["b.jsonl:1"]),
        ("s3://shared/chats/**/*.gz", ["0"], ["2026/c.jsonl.gz:1"]),
    ],
)
def test_a_file_a_folder_and_a_pattern_of_a_bucket_are_read(
    path, expected, sources, s3, put
) -> None:
    put("chats/b.jsonl", lines("3"))
    put("chats/a.csv", b"prompt,completion\n1,b\n")
    put("chats/2026/c.jsonl.gz", gzip.compress(lines("0")))
    put("chats/_SUCCESS", b"")

    found = s3(path=path)

    assert prompts(found) == expected
    assert [row.source for row in found.rows] == sources


def test_a_bad_row_of_a_bucket_is_named_by_its_url_and_line(s3, put) -> None:
    put("rows.jsonl", lines("a") + b"{\n")

    with pytest.raises(DataError, match=r"s3://shared/rows\.jsonl:2: broken JSON"):
        s3(path="s3://shared/rows.jsonl")


def test_a_copy_that_cannot_be_marked_as_used_is_used(s3, put, monkeypatch) -> None:
    put("rows.jsonl", lines("a"))
    s3(path="s3://shared/rows.jsonl")

    def refused(*_: Any) -> None:
        raise PermissionError("the file is another user's")

    monkeypatch.setattr(Path, "touch", refused)
    assert prompts(s3(path="s3://shared/rows.jsonl")) == ["a"]


def test_an_object_is_fetched_again_only_when_it_changed(s3, put, caplog) -> None:
    put("rows.jsonl", lines("a"))

    with caplog.at_level(logging.INFO):
        first = s3(path="s3://shared/rows.jsonl")
        again = s3(path="s3://shared/rows.jsonl")
        assert caplog.text.count("Fetching s3://shared/rows.jsonl") == 1
        # As many bytes, and within the same second.
        put("rows.jsonl", lines("z"))
        changed = s3(path="s3://shared/rows.jsonl")

    assert caplog.text.count("Fetching s3://shared/rows.jsonl") == 2
    assert prompts(changed) == ["z"]
    assert first.source.digest == again.source.digest != changed.source.digest


def test_the_identity_is_that_of_the_same_file_on_disk(s3, reader, put, write) -> None:
    put("deep/rows.jsonl", lines("a"))
    write("rows.jsonl", lines("a"))

    remote, local = s3(path="s3://shared/deep/rows.jsonl").source, reader(path="rows.jsonl").source

    assert (remote.identity, remote.digest) == (local.identity, local.digest)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("s3://shared/absent.jsonl", "absent"),
        ("s3://nobody/rows.jsonl", "nobody"),
        ("s3://shared/*.csv", r"\*\.csv"),
    ],
)
def test_what_a_bucket_does_not_hold_is_refused(path, words, s3, put) -> None:
    put("rows.jsonl", lines("a"))

    with pytest.raises(DataError, match=words):
        s3(path=path)


def test_without_credentials_the_ways_to_give_them_are_named(
    s3, put, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    put("rows.jsonl", lines("a"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()

    with pytest.raises(
        DataError, match=r"Credentials come from the environment.*AWS_ACCESS_KEY_ID"
    ):
        s3(path="s3://shared/rows.jsonl")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """(address, folder that is served, requests) of a web server that gives no ETag."""
    folder = tmp_path / "web"
    folder.mkdir()
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            requests.append(f"{self.command} {self.path}")

    handler = functools.partial(Handler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder, requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_of_a_web_server_is_read(web, reader) -> None:
    address, folder, _ = web
    (folder / "rows.jsonl").write_bytes(lines("a", "b"))

    found = reader(path=f"{address}/rows.jsonl?download=1")

    assert prompts(found) == ["a", "b"]
    assert found.source.name == "rows.jsonl"
    assert found.rows[1].source == "rows.jsonl:2"


def test_a_web_server_that_marks_no_change_is_asked_for_the_file_each_time(web, reader) -> None:
    """A date is too coarse: yesterday's rows must not pass for today's."""
    address, folder, requests = web
    (folder / "rows.jsonl").write_bytes(lines("a"))
    reader(path=f"{address}/rows.jsonl")
    (folder / "rows.jsonl").write_bytes(lines("b"))

    assert prompts(reader(path=f"{address}/rows.jsonl")) == ["b"]
    assert requests.count("GET /rows.jsonl") == 2


def test_a_web_server_without_the_file_is_named(web, reader) -> None:
    address, _, _ = web

    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:\d+/absent\.jsonl: there is no such"):
        reader(path=f"{address}/absent.jsonl?download=1")


@pytest.fixture
def loopback() -> Iterator[socket.socket]:
    """A bound socket: refuses until it listens, and says nothing afterwards."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


def test_a_server_that_is_down_is_no_missing_file(loopback, reader) -> None:
    address = f"http://127.0.0.1:{loopback.getsockname()[1]}/rows.jsonl"

    with pytest.raises(DataError) as refused:
        reader(path=address)

    assert f"{address}: nothing answers there (connection refused" in str(refused.value)
    assert "no such file" not in str(refused.value)
    assert "Credentials" not in str(refused.value)


def test_an_object_store_that_is_down_is_no_matter_of_credentials(loopback, put, reader) -> None:
    options = {
        "endpoint_url": f"http://127.0.0.1:{loopback.getsockname()[1]}",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }

    with pytest.raises(DataError, match="nothing answers there") as refused:
        reader(path="s3://shared/rows.jsonl", storage_options=options)

    assert "Credentials" not in str(refused.value)


def test_a_server_that_stays_silent_is_told_with_the_seconds(
    loopback, reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENT_SECONDS", 0.3)
    loopback.listen()

    with pytest.raises(DataError, match=r"did not answer within 0\.3 seconds"):
        reader(path=f"http://127.0.0.1:{loopback.getsockname()[1]}/rows.jsonl")


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, r"status 403\. Give access to it"), (503, r"status 503\. Try again later")],
)
def test_a_server_that_refuses_is_told_with_its_status(
    web, reader, monkeypatch: pytest.MonkeyPatch, status: int, words: str
) -> None:
    monkeypatch.setattr(
        SimpleHTTPRequestHandler, "send_head", lambda handler: handler.send_error(status)
    )

    with pytest.raises(DataError, match=words):
        reader(path=f"{web[0]}/rows.jsonl")


def test_a_server_whose_name_nobody_knows_is_told_as_that() -> None:
    missing = FileNotFoundError("http://data.invalid/rows.jsonl")
    missing.__cause__ = socket.gaierror(-2, "Name or service not known")

    told = refusal("http://data.invalid/rows.jsonl", missing, 60)

    assert "the name of the server data.invalid is not known" in told


def test_a_scheme_that_nothing_here_reads_is_refused(reader) -> None:
    with pytest.raises(
        DataError, match=r"quux://a/rows\.jsonl: nothing here reads quux://\. Correct the URL"
    ):
        reader(path="quux://a/rows.jsonl")


def test_a_file_system_that_is_not_installed_names_its_package(
    reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gcsfs", None)

    with pytest.raises(DataError, match=r'pip install "loraline\[gcs\]", or copy the files here'):
        reader(path="gs://shared/rows.jsonl")
