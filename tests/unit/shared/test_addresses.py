import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tasks.addresses import answers, is_ambiguous, unreachable, without_passwords


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://me:Zk9/geheim@db:5432, down", "at postgresql://db:5432, down"),
        ("postgresql://me:pa@geheim@db/x", "postgresql://db/x"),
        ("postgresql://me:1?a=geheim@db", "postgresql://db"),
        ("postgresql://me:a#geheim@db", "postgresql://db"),
        ("postgresql://me:12/geheim@db", "postgresql://db"),
        ("(postgresql://me:a://geheim@db)", "(postgresql://db)"),
        ("https://u:a/geheim@h1/x,https://u:geheim@h2/y", "https://h1/x,https://h2/y"),
        ("postgresql://db/x?password=geheim&a=1 down", "postgresql://db/x?password=&a=1 down"),
        ("db/x?a=1&sslpassword=geheim", "db/x?a=1&sslpassword="),
        ("host=db password='ge heim' user=me", "host=db password= user=me"),
    ],
)
def test_a_password_with_unencoded_signs_or_as_a_parameter_is_taken_out(
    text: str, shown: str
) -> None:
    assert without_passwords(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/a@b",
        "http://[::1]:5000/a@b",
        "git+https://github.com/x@v1",
        "s3://bucket/a@b.jsonl",
        "postgresql://a:1,b:2/db",
        "see http://h:80, or ask a@b.org",
    ],
)
def test_an_at_sign_that_ends_no_password_stays(text: str) -> None:
    assert without_passwords(text) == text


def test_the_path_behind_a_token_stays() -> None:
    assert without_passwords("https://geheim@host/x@v1") == "https://host/x@v1"


@pytest.mark.parametrize(
    "password", ["a@b", "a/b", "1/b", "a?b", "1?a=b", "a#b", "a[b", "a[b]c", "100%b", "a b", "%00b"]
)
def test_an_unencoded_sign_in_a_password_makes_an_address_ambiguous(password: str) -> None:
    assert is_ambiguous(f"postgresql://me:{password}@db:5432")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:p%40s%2Fs:!@db.example:6432?sslmode=require",
        "postgresql://me@[::1]:5432/x",
        "postgresql://a:1,b:2/db",
        "postgresql:///db?host=/run/postgresql",
        "postgresql://db/?user=me@server&password=a@b",
        "postgresql://me:x@db?sslrootcert=/a b/c.pem&application_name=100%",
    ],
)
def test_an_address_that_all_read_alike_is_not_ambiguous(url: str) -> None:
    assert not is_ambiguous(url)


@pytest.mark.parametrize(
    "query", ["?password=a@b", "/?password=100%b", "/?password=a b", "/?sslrootcert=a@b"]
)
def test_a_parameter_can_make_an_address_ambiguous_too(query: str) -> None:
    assert is_ambiguous(f"postgresql://db{query}")


def test_a_tab_that_urlsplit_leaves_away_makes_an_address_ambiguous() -> None:
    assert is_ambiguous("postgresql://me:a\tb@db")


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
