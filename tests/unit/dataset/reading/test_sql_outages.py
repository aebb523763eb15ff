"""A database that is silent, locked or away stops nothing for ever, and is told from a mistake."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from filelock import FileLock

from tasks.dataset.reading import patience, sql, sql_rows
from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.patience import heard
from tasks.errors import DataError, ServerAway, StageFailed
from tasks.outage import is_outage

VARIABLE = "LORALINE_TEST_DATABASE"
ROOT = Path(__file__).resolve().parents[4]
SOURCE = {
    "type": "sql",
    "url_variable": VARIABLE,
    "query": "SELECT id, 'a' AS prompt, 'b' AS completion FROM held ORDER BY id",
    "name": "held",
}


@pytest.fixture
def server(postgres: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A PostgreSQL with a table of two rows; a connection to it on which each statement stands alone."""
    monkeypatch.setenv(VARIABLE, driven(postgres))
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS held")
        connection.execute("CREATE TABLE held (id INTEGER)")
        connection.execute("INSERT INTO held VALUES (1), (2)")
        yield connection


def driven(url: str) -> str:
    return url.replace("postgresql", "postgresql+psycopg", 1)


@pytest.fixture
def fetch(reader: Any) -> Callable[..., Any]:
    def fetched(**more: Any) -> Any:
        (source,) = reader.opened({**SOURCE, **more})
        return len(list(source.rows(BadRows()))), source.counts

    return fetched


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_server_that_lets_nobody_in_is_given_up(
    fetch: Any, mute: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "CONNECTING_SECONDS", 0.3)
    monkeypatch.setattr(patience, "CLOSING_SECONDS", 0.1)
    monkeypatch.setenv(VARIABLE, f"postgresql+psycopg://u:geheim@127.0.0.1:{mute}/d")
    began = time.monotonic()

    with pytest.raises(ServerAway, match=f"127.0.0.1:{mute}/d let nobody in") as caught:
        fetch()

    assert time.monotonic() - began < 10
    assert is_outage(caught.value)
    assert VARIABLE in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_the_driver_gives_up_an_address_by_itself(
    fetch: Any, mute: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sql_rows._LIBPQ, "connect_timeout", 1)
    monkeypatch.setenv(VARIABLE, f"postgresql+psycopg://u@127.0.0.1:{mute}/d")
    began = time.monotonic()

    with pytest.raises(ServerAway, match="timeout"):
        fetch()

    assert time.monotonic() - began < 20


def test_what_the_url_says_of_time_outs_holds(postgres: str) -> None:
    url = sqlalchemy.make_url(f"{driven(postgres)}?connect_timeout=7&keepalives_idle=9")
    engine = sql_rows._engine(url)
    with engine.connect() as connection:
        told = connection.connection.driver_connection.info.get_parameters()
    engine.dispose()

    assert (told["connect_timeout"], told["keepalives_idle"]) == ("7", "9")
    assert told["keepalives_interval"] == "15"


@pytest.mark.parametrize("more", [{}, {"watermark": "id"}])
def test_a_locked_table_is_given_up_and_nobody_waits_on(
    more: dict[str, str], fetch: Any, server: Any, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch(**more)[0] == 2
    server.execute("INSERT INTO held VALUES (3)")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with psycopg.connect(postgres) as other:
        other.execute("LOCK TABLE held IN ACCESS EXCLUSIVE MODE")
        with monkeypatch.context() as patched:
            patched.setattr(sql, "SILENT_SECONDS", 0.5)
            with pytest.raises(ServerAway, match=r"no further rows for .* hold a lock") as caught:
                fetch(**more)
        assert server.execute(waiting).fetchone() == (0,)

    assert is_outage(caught.value)
    rows, counts = fetch(**more)
    assert rows == 3
    # What was fetched before is not asked for again.
    assert counts["kept_rows"] == (2 if more else 0)


def test_a_slow_query_may_take_its_time_as_long_as_rows_come(
    fetch: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "SILENT_SECONDS", 1.5)
    slow = (
        "SELECT i AS id, pg_sleep(0.5)::text AS x, 'a' AS prompt, 'b' AS completion "
        "FROM generate_series(1, 6) AS i"
    )
    began = time.monotonic()

    assert fetch(query=slow, chunk_rows=1)[0] == 6
    assert time.monotonic() - began > 2


def test_a_refused_connection_is_an_outage(fetch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "postgresql+psycopg://u:geheim@127.0.0.1:9/d")

    with pytest.raises(ServerAway, match=r"(?i)refused.*check it") as caught:
        fetch()

    assert is_outage(caught.value)
    assert "geheim" not in str(caught.value)


def test_a_server_that_shuts_down_amid_the_rows_is_an_outage(fetch: Any, server: Any) -> None:
    dies = "SELECT id, pg_terminate_backend(pg_backend_pid()) AS x FROM held ORDER BY id"

    # The driver may find the closed socket before it has read the server's last words.
    with pytest.raises(ServerAway, match=r"terminating connection|closed the connection") as caught:
        fetch(query=dies)

    assert is_outage(caught.value)


@pytest.mark.parametrize(
    "query", ["SELECT id FROM nowhere ORDER BY id", "SELECT id FROM held ORDER", "SELECT 1/0 AS id"]
)
def test_a_wrong_query_is_no_outage(query: str, fetch: Any, server: Any) -> None:
    with pytest.raises(DataError, match=r"answers: .*Correct dataset.sources\[\].query") as caught:
        fetch(query=query)

    assert not is_outage(caught.value)


def test_a_wrong_login_is_no_outage(
    fetch: Any, server: Any, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rules,) = server.execute("SHOW hba_file").fetchone()
    with_password = "host all guarded 127.0.0.1/32 scram-sha-256\n"
    if with_password not in (told := Path(rules).read_text()):
        Path(rules).write_text(with_password + told)
    server.execute("SELECT pg_reload_conf()")
    server.execute("DROP ROLE IF EXISTS guarded")
    server.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
    url = driven(postgres)
    for wrong, words in (
        (url.replace("tester:geheim", "guarded:geheim"), "password authentication failed"),
        (url.replace("tester:geheim", "guarded"), "no password supplied"),
        (url.replace("tester", "nobody_here"), "role .* does not exist"),
        (f"{url}_that_is_not", "database .* does not exist"),
        (f"{url}?sslmode=require", "SSL"),
    ):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(DataError, match=words) as caught:
            fetch()
        assert not is_outage(caught.value)
        assert "geheim" not in str(caught.value)


def test_a_file_that_another_program_locks_is_an_outage(
    fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"sqlite:///{tmp_path / 'a.db'}?timeout=0.1")
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'a.db'}")
    with engine.connect() as other:
        other.exec_driver_sql("CREATE TABLE held (id INTEGER)")
        other.exec_driver_sql("BEGIN EXCLUSIVE")
        with pytest.raises(ServerAway, match="database is locked") as caught:
            fetch()
    engine.dispose()

    assert is_outage(caught.value)


def test_another_run_that_fetches_the_same_for_hours_is_named(
    fetch: Any, reader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'a.db'}")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE held (id INTEGER)")
        connection.exec_driver_sql("INSERT INTO held VALUES (1)")
    engine.dispose()
    place = {"database": "a.db", "url_variable": None}
    assert fetch(**place)[0] == 1
    (path,) = (reader.folder / "cache" / "sql").glob("*.lock")
    monkeypatch.setattr(sql, "FETCH_SECONDS", 0.2)

    with FileLock(path), pytest.raises(StageFailed, match="another run has been fetching") as told:
        fetch(**place)

    assert f"fuser {path}" in str(told.value)
    assert fetch(**place)[0] == 1


def test_items_are_asked_for_one_by_one_and_closed_in_their_thread() -> None:
    seen: list[Any] = []

    def items() -> Any:
        try:
            for i in range(3):
                seen.append(i)
                yield i
        finally:
            seen.append("closed")

    told = heard(items(), iter(lambda: 5.0, None), lambda: seen.append("cancelled"))

    assert next(told) == 0
    assert seen == [0]
    told.close()
    assert seen == [0, "closed"]
    assert list(heard(items(), iter(lambda: 5.0, None), list)) == [0, 1, 2]


def test_an_error_of_an_item_is_raised_where_it_is_wanted() -> None:
    def items() -> Any:
        yield 1
        raise KeyError("x")

    told = heard(items(), iter(lambda: 5.0, None), list)
    assert next(told) == 1
    with pytest.raises(KeyError):
        next(told)


def test_a_call_that_never_comes_back_keeps_no_process_from_ending() -> None:
    code = (
        "import time\nfrom tasks.dataset.reading import patience\n"
        "patience.CLOSING_SECONDS = 0.1\n"
        "def items():\n    yield 1\n    time.sleep(600)\n"
        "try:\n    print(list(patience.heard(items(), iter(lambda: 0.3, None), lambda: time.sleep(600))))\n"
        "except patience.Silence as silence:\n    print(silence)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "nothing for 0.3 s\n"), done.stderr
