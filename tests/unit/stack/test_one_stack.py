"""A second stack on one PostgreSQL is refused; what ends without a word keeps nobody out."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.stack import one_stack
from flows.stack.exposure import NO_RESTART
from flows.stack.one_stack import only_stack
from flows.stack.postgres import ready_databases
from flows.stack.settings import POSTGRES, StackSettings
from flows.stack.starting import bring_up
from tasks.advisory_lock import AdvisoryLock
from tasks.errors import UserError
from tasks.home import Home
from tests.unit.stack.test_postgres import empty, query, server

__all__ = ["empty", "server"]

HOLD = """
import sys, time
from pathlib import Path
from flows.stack import one_stack
from tasks.home import Home

one_stack.CHECK_SECONDS = 0.2
one_stack.hold(Home(Path(sys.argv[1])), sys.argv[2], lambda text: print(text, flush=True))
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def serving(home: Home, address: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the databases, as a stack's Prefect server does."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, str(home.root), address],
        cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "PYTHONPATH": "."},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def says(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def address(empty: str) -> str:
    url = f"postgresql://tester:geheim@{empty}"
    ready_databases(url)
    return url


@pytest.fixture
def first(tmp_path: Path) -> Home:
    return Home((tmp_path / "first").resolve())


@pytest.fixture
def second(tmp_path: Path) -> Home:
    return Home((tmp_path / "second").resolve())


def sessions(server: str) -> list[object]:
    found = query(
        server,
        "loraline_prefect",
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted",
    )
    return [pid for (pid,) in found]


def until(what: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_second_up_is_refused_names_the_first_and_has_touched_nothing(
    address: str, first: Home, second: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POSTGRES, address)
    said: list[str] = []
    with serving(first, address) as prefect:
        assert says(prefect) == "held"
        with pytest.raises(UserError) as refused:
            bring_up(second, StackSettings(project=tmp_path), said.append)
    told = str(refused.value)
    # Of a long path PostgreSQL keeps the end.
    assert str(first.root)[-20:] in told
    assert os.uname().nodename[:24] in told
    assert "127.0.0.1" in told
    assert "loraline down" in told
    assert "geheim" not in told
    assert refused.value.exit_code == NO_RESTART
    assert not said
    assert not list(second.logs.glob("*migration*"))


def test_another_machine_of_the_same_name_is_another_stack(
    address: str, first: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made of one image, and with a copy of the folder, as when a machine was replaced and is switched on again."""
    with only_stack(first, address, print):
        monkeypatch.setattr(one_stack, "_machine", lambda: f"{os.uname().nodename[:24]}#0badcafe")
        with (
            pytest.raises(UserError, match="has a stack already") as refused,
            only_stack(first, address, print),
        ):
            pass
    assert refused.value.exit_code == NO_RESTART


def test_the_migrations_of_who_holds_the_databases_do_not_wait_for_themselves(
    address: str, server: str, first: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    query(server, "loraline_prefect", "CREATE TABLE flow_run (name text)")
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=10s")
    with only_stack(first, address, print):
        # As Prefect's do: it waits for every transaction that has a snapshot.
        query(server, "loraline_prefect", "CREATE INDEX CONCURRENTLY ON flow_run (name)")


def test_a_killed_server_s_successor_has_the_databases_at_once(
    address: str, first: Home, second: Home
) -> None:
    with serving(first, address) as killed:
        assert says(killed) == "held"
        with serving(second, address) as successor:
            assert says(successor).startswith("waiting for the stack")
            killed.kill()
            assert says(successor) == "held"


def test_a_connection_that_breaks_ends_no_server_and_the_lock_is_taken_again(
    address: str, server: str, first: Home, second: Home
) -> None:
    with serving(first, address) as prefect:
        assert says(prefect) == "held"
        (before,) = sessions(server)
        query(server, "postgres", f"SELECT pg_terminate_backend({before})")
        until(lambda: sessions(server) not in ([], [before]))
        assert prefect.poll() is None
        with (
            pytest.raises(UserError, match="has a stack already"),
            only_stack(second, address, print),
        ):
            raise AssertionError


def test_a_session_that_the_home_s_last_stack_left_is_waited_for(address: str, first: Home) -> None:
    with serving(first, address) as left:
        assert says(left) == "held"
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            left.kill()

        with only_stack(first, address, say):
            assert len(said) == 1


def test_postgresql_itself_asks_whether_the_holder_s_machine_is_still_there(
    address: str, server: str
) -> None:
    port = f":{int(server.rpartition(':')[2]):04X}"

    def asks_soon() -> bool:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        # Established connections. 2 is the timer of TCP's keepalive, in hundredths of a second.
        timers = [row[5].split(":") for row in rows if row[1].endswith(port) and row[3] == "01"]
        return [(kind, int(left, 16) <= 1000) for kind, left in timers] == [("02", True)]

    lock = AdvisoryLock(f"{address}/loraline_prefect", "a test")
    assert lock.acquire()
    try:
        until(asks_soon, 10)
    finally:
        lock.close()
