import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tasks.addresses import answers, unreachable, without_passwords


@pytest.fixture
def port() -> Iterator[int]:
    """A server that wants credentials."""

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(502 if "behind" in self.path else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def test_passwords_are_taken_out_of_every_address() -> None:
    text = "GET https://u:se%40cret@host:5/api failed; see postgresql://me:pw@db/x, not a@b.org"
    assert without_passwords(text) == (
        "GET https://host:5/api failed; see postgresql://db/x, not a@b.org"
    )


def test_a_server_behind_an_address_with_credentials_is_found(port: int) -> None:
    assert answers(f"http://user:secret@127.0.0.1:{port}/api/health") == 401


def test_a_proxy_is_not_asked_for_a_server_on_this_machine(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert answers(f"http://127.0.0.1:{port}/") == 401


def test_silence_is_an_error() -> None:
    with pytest.raises(OSError, match="refused"):
        answers("http://user:secret@127.0.0.1:9/")


def test_a_server_that_refuses_is_reachable_and_silence_is_told_in_words(port: int) -> None:
    assert unreachable(f"http://user:secret@127.0.0.1:{port}/health") is None
    assert unreachable("http://user:secret@127.0.0.1:9/") == "Connection refused"
    assert unreachable("http://[bad/") is not None
    assert "name" in str(unreachable("http://no-such-host.invalid/")).lower()


def test_a_server_that_is_slow_or_speaks_with_its_own_clients_only_is_reachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        place = f"127.0.0.1:{listening.getsockname()[1]}"
        began = time.monotonic()
        assert unreachable(f"http://{place}/health", timeout_seconds=0.3) is None
        assert time.monotonic() - began < 3
        assert unreachable(f"postgresql+psycopg://u:p@{place}/db", timeout_seconds=0.3) is None


def test_a_certificate_that_nobody_here_trusts_is_a_servers_all_the_same(port: int) -> None:
    # What answers is no TLS at all: the mistake is told by the client that knows the settings.
    assert unreachable(f"https://127.0.0.1:{port}/") is None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://u:p@127.0.0.1:9/db", "Connection refused"),
        ("postgresql:///db?host=/run/postgresql", None),
        ("postgresql://a:1,b:2/db", None),
        ("sqlite:////folder/mlflow.db", None),
        ("databricks", None),
    ],
)
def test_a_database_is_asked_for_a_connection_where_its_address_names_one_host(
    url: str, why: str | None
) -> None:
    assert unreachable(url) == why


def test_a_gateway_that_reaches_no_server_is_told_with_its_status(port: int) -> None:
    assert unreachable(f"http://127.0.0.1:{port}/behind") == "its gateway answers with status 502"
