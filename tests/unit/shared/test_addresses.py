import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tasks.addresses import answers, without_passwords


@pytest.fixture
def port() -> Iterator[int]:
    """A server that wants credentials."""

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
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
