"""One promoter at a time: by the kernel on one machine, by PostgreSQL across several, or not at all."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from flows.stack.settings import StackSettings, write_settings
from tasks.errors import ServerAway, StageFailed, UserError
from tasks.home import Home
from tasks.promotion import lock
from tasks.promotion.lock import LOCK_DATABASE, lock_database, lock_folders, promoting
from tasks.promotion.promoting import promote
from tasks.stack import Server, write_stack
from tasks.tracking import Tracker

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(params=["file", "postgresql"])
def environ(request: pytest.FixtureRequest) -> dict[str, str]:
    """Which backend is used."""
    if request.param == "file":
        return {}
    return {LOCK_DATABASE: request.getfixturevalue("postgres")}


def test_a_second_promoter_waits_and_is_then_told(
    own_tracker: Tracker, environ: dict[str, str]
) -> None:
    with promoting(own_tracker, "a", environ=environ) as held:
        held.check()
        began = time.monotonic()
        with (
            pytest.raises(StageFailed, match=r"has held the lock for 0\.3 s"),
            promoting(own_tracker, "a", environ=environ, wait_seconds=0.3),
        ):
            pytest.fail("two hold the lock")
        assert time.monotonic() - began >= 0.3
        # Another model is nobody's business.
        with promoting(own_tracker, "b", environ=environ, wait_seconds=0.3):
            pass
    with promoting(own_tracker, "a", environ=environ, wait_seconds=0.3):
        pass


def test_a_waiting_promoter_goes_on_when_the_first_is_done(
    own_tracker: Tracker, environ: dict[str, str]
) -> None:
    order = []
    inside = threading.Event()

    def first() -> None:
        with promoting(own_tracker, "a", environ=environ):
            inside.set()
            time.sleep(0.5)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with promoting(own_tracker, "a", environ=environ, wait_seconds=30):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_a_killed_promoter_holds_nobody_back(own_tracker: Tracker, environ: dict[str, str]) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom tasks.home import Home\n"
        "from tasks.promotion.lock import promoting\nfrom tasks.tracking import Tracker\n"
        f"with promoting(Tracker(Home(Path({str(own_tracker.home.root)!r}))), 'a', environ={environ!r}):\n"
        "    print('held', flush=True)\n    time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(StageFailed, match="held the lock"),
            promoting(own_tracker, "a", environ=environ, wait_seconds=0.2),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with promoting(own_tracker, "a", environ=environ, wait_seconds=30):
        pass


def test_a_lock_whose_connection_broke_is_noticed_before_the_next_step(
    own_tracker: Tracker, postgres: str
) -> None:
    import psycopg

    with promoting(own_tracker, "a", environ={LOCK_DATABASE: postgres}) as held:
        held.check()
        with psycopg.connect(postgres, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'loraline promotion'"
            )
        with pytest.raises(StageFailed, match="broke in the middle"):
            held.check()


def test_a_database_that_is_away_is_named_without_its_password(own_tracker: Tracker) -> None:
    url = "postgresql://u:geheim@127.0.0.1:9/d"
    with (
        # An outage, which a scheduled run waits for.
        pytest.raises(ServerAway, match="cannot be reached") as caught,
        promoting(own_tracker, "a", environ={LOCK_DATABASE: url}),
    ):
        pass
    assert "geheim" not in str(caught.value)


def test_a_login_that_the_database_refuses_is_no_outage(
    own_tracker: Tracker, postgres: str
) -> None:
    with (
        pytest.raises(StageFailed, match="refuses") as caught,
        promoting(own_tracker, "a", environ={LOCK_DATABASE: f"{postgres}_that_is_not"}),
    ):
        pass
    assert not isinstance(caught.value, ServerAway)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("connection failed: FATAL:  sorry, too many clients already", ServerAway),
        ("connection failed: FATAL:  the database system is starting up", ServerAway),
        ("server closed the connection unexpectedly", ServerAway),
        ('connection failed: FATAL:  password authentication failed for user "u"', StageFailed),
        ("connection failed: fe_sendauth: no password supplied", StageFailed),
    ],
)
def test_only_what_passes_by_itself_is_an_outage(
    own_tracker: Tracker, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[StageFailed]
) -> None:
    import psycopg

    def fail(*_: Any, **__: Any) -> None:
        raise psycopg.OperationalError(said)

    monkeypatch.setattr(psycopg, "connect", fail)
    with (
        pytest.raises(kind) as caught,
        promoting(own_tracker, "a", environ={LOCK_DATABASE: "postgresql://u@127.0.0.1:9/d"}),
    ):
        pass
    assert type(caught.value) is kind


def test_several_machines_without_postgresql_are_refused_with_the_reason(tmp_path: Path) -> None:
    tracker = Tracker(Home(tmp_path), uri="https://u:geheim@mlflow.example.org")
    with (
        pytest.raises(StageFailed, match=r"several machines .* does not hold the others back") as e,
        promoting(tracker, "a", environ={}),
    ):
        pass
    assert LOCK_DATABASE in str(e.value)
    assert "geheim" not in str(e.value)


def test_the_stack_s_own_database_is_found() -> None:
    prefect = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://u:p@db:5432/prefect"}
    assert lock_database("http://mlflow:5000", prefect) == "postgresql://u:p@db:5432/prefect"
    mlflow = {"MLFLOW_BACKEND_STORE_URI": "postgresql://u@db/mlflow", **prefect}
    assert lock_database("http://mlflow:5000", mlflow) == "postgresql://u@db/mlflow"
    asked = {LOCK_DATABASE: "postgresql://u@db/locks", **mlflow}
    assert lock_database("http://mlflow:5000", asked) == "postgresql://u@db/locks"
    assert lock_database("postgresql+psycopg2://u@db/m", {}) == "postgresql://u@db/m"
    assert lock_database("sqlite:////a/mlflow.db", {"X": "postgresql://u@db/x"}) is None
    with pytest.raises(UserError, match="only PostgreSQL"):
        lock_database("http://mlflow:5000", {LOCK_DATABASE: "mysql://u@db/x"})


def test_two_homes_before_one_database_share_its_lock(own_tracker: Tracker, tmp_path: Path) -> None:
    first = Tracker(Home(tmp_path / "first"), uri=own_tracker.uri)
    second = Tracker(Home(tmp_path / "second"), uri=own_tracker.uri)
    with (
        promoting(first, "a", environ={}),
        pytest.raises(StageFailed, match="held the lock"),
        promoting(second, "a", environ={}, wait_seconds=0.2),
    ):
        pass


def test_a_promotion_goes_through_postgresql_s_lock_where_the_stack_has_one(
    own_tracker: Tracker,
    postgres: str,
    monkeypatch: pytest.MonkeyPatch,
    register: Any,
    loads: Any,
    nobody: Any,
) -> None:
    import psycopg

    monkeypatch.setenv(LOCK_DATABASE, postgres)
    register(own_tracker, "a", 1)
    seen = []
    set_alias = own_tracker.client.set_registered_model_alias

    def look(*arguments: str) -> None:
        with psycopg.connect(postgres) as other:
            found = other.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            seen.append(found.fetchone())
        set_alias(*arguments)

    monkeypatch.setattr(own_tracker.client, "set_registered_model_alias", look)
    promote(own_tracker, "a", "1", reason="x", verify=loads, notices=nobody)
    assert seen == [(1,)]
    assert urlsplit(postgres).port


@pytest.fixture
def served(own_tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home whose MLflow server runs, as far as its `stack.json` says."""
    monkeypatch.setattr(lock, "SERVER_LOCKS", tmp_path / "of all users")
    write_stack(own_tracker.home, {"mlflow": Server("http://127.0.0.1:5000", os.getpid())})
    return own_tracker.home


@pytest.mark.parametrize("first", ["owner", "file", "localhost", "server"])
@pytest.mark.parametrize("second", ["owner", "file", "localhost", "server"])
def test_whichever_way_two_promoters_reach_one_registry_they_exclude_each_other(
    served: Home, tmp_path: Path, first: str, second: str
) -> None:
    link = tmp_path / "link"
    link.symlink_to(served.root)
    ways = {
        "owner": Tracker(served, f"sqlite:///{served.mlflow / 'mlflow.db'}"),
        "file": Tracker(Home(tmp_path / "b"), f"sqlite:///{link / 'mlflow' / 'mlflow.db'}"),
        "localhost": Tracker(served, "http://localhost:5000"),
        "server": Tracker(Home(tmp_path / "b"), "http://127.0.0.1:5000/"),
    }
    with (
        promoting(ways[first], "a", environ={}),
        pytest.raises(StageFailed, match="held the lock"),
        promoting(ways[second], "a", environ={}, wait_seconds=0),
    ):
        pass


@pytest.mark.parametrize("knows", ["first", "second"])
def test_who_knows_only_the_address_of_a_server_on_postgresql_excludes_who_knows_its_database(
    served: Home, postgres: str, knows: str
) -> None:
    tracker = Tracker(served, "http://127.0.0.1:5000")
    known, unknown = {LOCK_DATABASE: postgres}, dict[str, str]()
    first, second = (known, unknown) if knows == "first" else (unknown, known)
    with (
        promoting(tracker, "a", environ=first),
        pytest.raises(StageFailed, match="held the lock"),
        promoting(tracker, "a", environ=second, wait_seconds=0),
    ):
        pass


def test_the_lock_of_a_server_lies_where_no_setting_of_one_process_moves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert Path("/tmp") == lock.SERVER_LOCKS
    monkeypatch.setattr(lock, "SERVER_LOCKS", tmp_path)
    for host in ("127.0.0.1", "localhost", "[::1]", "127.0.0.2"):
        uri = f"http://{host}:5000/"
        assert lock_folders(Tracker(Home(tmp_path), uri)) == [tmp_path / "loraline-locks-5000"]
    assert (tmp_path / "loraline-locks-5000").stat().st_mode & 0o7777 == 0o1777


def test_without_a_server_the_lock_lies_beside_the_database(own_tracker: Tracker) -> None:
    assert lock_folders(own_tracker) == [own_tracker.home.mlflow]


@pytest.mark.parametrize("url", ["http://192.168.1.5:5000", "http://gpu-box:5000"])
def test_a_server_that_listens_elsewhere_is_locked_beside_its_own_database(
    own_tracker: Tracker, tmp_path: Path, url: str
) -> None:
    """Its workers are given this address: other machines are held back by their own refusal."""
    home = own_tracker.home
    write_stack(home, {"mlflow": Server(url, os.getpid())})
    assert lock_folders(Tracker(home, f"{url}/")) == lock_folders(own_tracker) == [home.mlflow]
    for tracker in (
        Tracker(Home(tmp_path / "another"), url),
        Tracker(home, url.replace("5000", "5001")),
    ):
        with pytest.raises(StageFailed, match="in the folder of its stack"):
            lock_folders(tracker)


def test_a_server_on_postgresql_that_listens_elsewhere_has_no_file_to_lock(
    own_tracker: Tracker,
) -> None:
    home = own_tracker.home
    write_stack(home, {"mlflow": Server("http://192.168.1.5:5000", os.getpid())})
    write_settings(home, StackSettings(project=home.root, database="postgresql"))
    with pytest.raises(StageFailed, match=LOCK_DATABASE):
        lock_folders(Tracker(home, "http://192.168.1.5:5000"))
