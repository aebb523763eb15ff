"""Which Prefect a run talks to: the user's, the stack's, or its own; and never two on one file."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows.connection import (
    Connection,
    client_environment,
    prefect_connection,
    server_environment,
    user_connection,
)
from flows.server_lock import ServerLock
from tasks.errors import StageFailed
from tasks.home import Home, home
from tasks.stack import Server, process_lives, read_stack, running, write_stack

URL = "http://prefect.example/api"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A working directory and a user's home."""
    cwd, user_home = tmp_path / "work", tmp_path / "user"
    cwd.mkdir()
    (user_home / ".prefect").mkdir(parents=True)
    return cwd, user_home


@pytest.fixture
def state() -> Home:
    state = home()
    state.prepare()
    return state


@pytest.fixture
def healthy() -> Iterator[str]:
    """The URL of something that answers 200 to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_nothing_set_means_no_choice_of_the_users(folders: tuple[Path, Path]) -> None:
    assert user_connection({}, *folders) is None


def test_the_environment_wins_over_every_file(folders: tuple[Path, Path]) -> None:
    cwd, user_home = folders
    (cwd / "prefect.toml").write_text('[api]\nurl = "http://file/api"\n')
    found = user_connection({"PREFECT_API_URL": URL}, cwd, user_home)
    assert found == Connection("user", URL, "PREFECT_API_URL")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (".env", f"export PREFECT_API_URL='{URL}'\n"),
        ("prefect.toml", f'[api]\nurl = "{URL}"\n'),
        ("pyproject.toml", f'[tool.prefect.api]\nurl = "{URL}"\n'),
    ],
)
def test_prefects_own_files_in_the_working_directory_count(
    folders: tuple[Path, Path], file: str, text: str
) -> None:
    cwd, user_home = folders
    (cwd / file).write_text(text)
    found = user_connection({}, cwd, user_home)
    assert found is not None
    assert (found.url, found.reason) == (URL, str(cwd / file))


PROFILES = f"""
active = "team"
[profiles.team]
PREFECT_API_URL = "{URL}"
[profiles.other]
PREFECT_API_URL = "http://other/api"
[profiles.offline]
PREFECT_LOGGING_LEVEL = "DEBUG"
"""


def test_the_active_profile_counts(folders: tuple[Path, Path]) -> None:
    cwd, user_home = folders
    (user_home / ".prefect" / "profiles.toml").write_text(PROFILES)
    found = user_connection({}, cwd, user_home)
    assert found is not None
    assert found.url == URL
    assert "'team'" in found.reason


@pytest.mark.parametrize(
    ("profile", "url"), [("other", "http://other/api"), ("offline", None), ("missing", None)]
)
def test_prefect_profile_names_another_profile(
    folders: tuple[Path, Path], profile: str, url: str | None
) -> None:
    cwd, user_home = folders
    (user_home / ".prefect" / "profiles.toml").write_text(PROFILES)
    found = user_connection({"PREFECT_PROFILE": profile}, cwd, user_home)
    assert (found.url if found else None) == url


@pytest.mark.parametrize("variable", ["PREFECT_HOME", "PREFECT_PROFILES_PATH"])
def test_profiles_are_found_where_the_environment_says(
    folders: tuple[Path, Path], tmp_path: Path, variable: str
) -> None:
    path = tmp_path / "profiles.toml"
    path.write_text(PROFILES)
    value = str(tmp_path if variable == "PREFECT_HOME" else path)
    found = user_connection({variable: value}, *folders)
    assert found is not None
    assert found.url == URL


def test_an_unreadable_profile_names_no_server(folders: tuple[Path, Path]) -> None:
    cwd, user_home = folders
    (user_home / ".prefect" / "profiles.toml").write_text("active = [[[")
    assert user_connection({}, cwd, user_home) is None


def test_prefect_itself_agrees_about_all_of_these(folders: tuple[Path, Path]) -> None:
    """Prefect 3.8's own settings, in a fresh process, for a file of each kind."""
    cwd, user_home = folders
    (user_home / ".prefect" / "profiles.toml").write_text(PROFILES)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment["HOME"] = str(user_home)
    code = "from prefect.settings import PREFECT_API_URL; print(PREFECT_API_URL.value())"

    def prefect_says() -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()[-1]

    def we_say() -> str | None:
        found = user_connection(environment, cwd, user_home)
        return found.url if found else None

    assert prefect_says() == we_say() == URL
    (cwd / "pyproject.toml").write_text('[tool.prefect.api]\nurl = "http://pyproject/api"\n')
    assert prefect_says() == we_say() == "http://pyproject/api"
    (cwd / ".env").write_text("PREFECT_API_URL=http://dotenv/api\n")
    assert prefect_says() == we_say() == "http://dotenv/api"


def test_the_users_server_is_left_alone(
    state: Home, monkeypatch: pytest.MonkeyPatch, healthy: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{healthy}/elsewhere/api")
    write_stack(state, {"prefect": Server(f"{healthy}/api", os.getpid())})
    before = dict(os.environ)
    with prefect_connection(state, "a test", pytest.fail) as connection:
        assert connection.kind == "user"
        assert dict(os.environ) == before
    assert not state.prefect.exists()


def test_a_server_of_the_users_that_does_not_answer_is_named_with_the_ways_out(
    state: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with (
        pytest.raises(StageFailed, match=r"127\.0\.0\.1:9.*PREFECT_API_URL.*take the setting away"),
        prefect_connection(state, "a test", pytest.fail),
    ):
        pass


def test_the_running_stack_is_used(
    state: Home, monkeypatch: pytest.MonkeyPatch, healthy: str, clean_prefect: None
) -> None:
    write_stack(state, {"prefect": Server(f"{healthy}/api", os.getpid())})
    with prefect_connection(state, "a test", pytest.fail) as connection:
        assert (connection.kind, connection.url) == ("stack", f"{healthy}/api")
        assert os.environ["PREFECT_API_URL"] == f"{healthy}/api"
        assert os.environ["PREFECT_HOME"] == str(state.prefect)


@pytest.fixture
def clean_prefect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of Prefect's; what the code under test sets is undone."""
    monkeypatch.chdir(tmp_path)
    for name in ("API_URL", "UI_URL", "HOME", "PROFILES_PATH", "PROFILE", "API_AUTH_STRING"):
        # Set first: only then is the variable's absence restored.
        monkeypatch.setenv(f"PREFECT_{name}", "")
        monkeypatch.delenv(f"PREFECT_{name}")


def test_a_stack_whose_process_is_dead_is_not_running(state: Home, healthy: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    write_stack(state, {"prefect": Server(f"{healthy}/api", child.pid)})
    assert running(state, "prefect") is None


def test_a_process_that_ended_and_was_not_waited_for_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    deadline = time.monotonic() + 60
    while process_lives(child.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not process_lives(child.pid)
    child.wait()


def test_a_stack_that_does_not_answer_is_not_running(state: Home) -> None:
    write_stack(state, {"prefect": Server("http://127.0.0.1:9/api", os.getpid())})
    assert running(state, "prefect") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"prefect": 1}', '{"prefect": {"url": "x"}}'])
def test_a_broken_stack_file_names_no_server(state: Home, text: str) -> None:
    state.stack_file.write_text(text)
    assert read_stack(state) == {}
    assert running(state, "prefect") is None


def test_a_servers_environment_holds_nothing_of_another_server(state: Home) -> None:
    theirs = {
        "PREFECT_API_URL": URL,
        "PREFECT_API_KEY": "secret",
        "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql://theirs",
        "PREFECT_SERVER_DATABASE_NAME": "theirs",
        "PREFECT_PROFILE": "team",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PATH": "/bin",
    }
    ours = server_environment(state, theirs)
    assert "secret" not in ours.values()
    assert "theirs" not in json.dumps(ours)
    assert "PREFECT_PROFILE" not in ours
    assert "PREFECT_API_URL" not in ours
    assert ours["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert ours["PATH"] == "/bin"
    assert ours["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert ours["PREFECT_SERVER_DATABASE_CONNECTION_URL"].endswith(f"{state.prefect}/prefect.db")


CORS = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
ASK_AS_A_PAGE = """
import sys
from prefect.server.api.server import create_app
from starlette.testclient import TestClient

client = TestClient(create_app(), base_url=sys.argv[1])
for origin in sys.argv[2:]:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "content-type"}
    allowed = client.options("/api/flows/", headers=asked).status_code
    answer = client.get("/api/health", headers={"Origin": origin})
    print(allowed, answer.status_code, answer.headers.get("access-control-allow-origin"))
"""


def asked_as_pages(environment: dict[str, str], server: str, *origins: str) -> list[list[str]]:
    """For pages of these origins: the answers to "may I send JSON?" and to a question, and who may read that."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", ASK_AS_A_PAGE, server, *origins],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_no_foreign_page_sends_json_to_a_prefect_of_ours_and_its_own_works_through_a_tunnel(
    state: Home,
) -> None:
    server = "http://127.0.0.1:4321"
    environment = server_environment(state, os.environ, api_url=f"{server}/api")
    foreign, own, tunnel = asked_as_pages(
        environment, server, "https://evil.example", server, "http://127.0.0.1:14321"
    )
    # A browser sends no JSON to elsewhere, and lets no page read an answer, without being allowed to.
    assert foreign == ["400", "200", "None"]
    assert own == ["200", "200", server]
    # Of a page's own origin a browser asks nothing before; the server must only not refuse it.
    assert tunnel[1] == "200"


def test_whose_pages_may_call_prefect_is_a_person_s_to_say(state: Home) -> None:
    assert server_environment(state, {})[CORS] == "http://127.0.0.1:4200"
    assert server_environment(state, {CORS: ""})[CORS] == "http://127.0.0.1:4200"
    assert server_environment(state, {CORS: "https://ours.example"})[CORS] == "https://ours.example"
    other_name = {"PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": "https://ours.example"}
    assert CORS not in server_environment(state, other_name)


def test_a_protected_server_is_given_its_password_by_the_client(state: Home) -> None:
    connection = Connection("embedded", "http://127.0.0.1:1/api", "")
    environ = {"PREFECT_SERVER_API_AUTH_STRING": "me:secret"}
    assert client_environment(state, connection, environ)["PREFECT_API_AUTH_STRING"] == "me:secret"


def test_one_lock_for_one_home(state: Home, tmp_path: Path) -> None:
    first, second = ServerLock(state), ServerLock(state)
    assert first.acquire("loraline run a.yaml")
    assert not second.acquire("loraline run b.yaml")
    holder = second.holder()
    assert holder is not None
    assert holder.pid == os.getpid()
    assert "loraline run a.yaml" in str(holder)
    other = Home(tmp_path / "other")
    assert ServerLock(other).acquire("another home is free")
    first.release()
    assert second.holder() is None
    assert second.acquire("loraline run b.yaml")
    second.release()


def test_the_lock_lives_as_long_as_the_server_that_inherited_it(state: Home) -> None:
    code = (
        "import subprocess, sys\n"
        "from flows.server_lock import ServerLock\n"
        "from tasks.home import home\n"
        "lock = ServerLock(home()); assert lock.acquire('a run')\n"
        "child = subprocess.Popen(['sleep', '60'], pass_fds=(lock.descriptor,),"
        " stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    server = int(done.stdout)
    lock = ServerLock(state)
    try:
        assert not lock.acquire("a run that comes too early")
    finally:
        os.kill(server, 9)
    deadline = time.monotonic() + 60
    while not lock.acquire("the next run"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lock.release()


def test_a_waiting_run_says_for_whom_and_takes_a_stack_that_appears(
    state: Home, healthy: str, clean_prefect: None
) -> None:
    holder = ServerLock(state)
    assert holder.acquire("loraline run first.yaml")
    said: list[str] = []

    def say(message: str) -> None:
        said.append(message)
        write_stack(state, {"prefect": Server(f"{healthy}/api", os.getpid())})

    with prefect_connection(state, "loraline run second.yaml", say) as connection:
        assert connection.kind == "stack"
    holder.release()
    assert len(said) == 1
    assert "loraline run first.yaml" in said[0]
    assert str(os.getpid()) in said[0]
    assert "loraline ui" in said[0]
