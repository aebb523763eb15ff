"""The stack's data in PostgreSQL: one setting, two databases, or the SQL to ask an administrator for."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.stack import leftovers
from flows.stack.databases import databases
from flows.stack.exposure import NO_RESTART
from flows.stack.migrating import migrate
from flows.stack.postgres import needed_sql, ready_databases
from flows.stack.settings import StackSettings
from tasks.errors import StageFailed, UserError
from tasks.home import Home


@pytest.fixture
def server(postgres: str) -> str:
    """The address of the server, without a user and without a database."""
    return postgres.rpartition("@")[2].removesuffix("/postgres")


def query(server: str, database: str, sql: str) -> list[tuple[object, ...]]:
    import psycopg

    with psycopg.connect(f"postgresql://tester@{server}/{database}", autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def empty(server: str) -> str:
    """The server without the stack's databases."""
    for name in ("loraline_prefect", "loraline_mlflow"):
        query(server, "postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    return server


def test_a_user_who_may_not_create_is_told_the_sql_that_then_suffices(empty: str) -> None:
    if not query(empty, "postgres", "SELECT 1 FROM pg_roles WHERE rolname = 'small'"):
        query(empty, "postgres", "CREATE ROLE small LOGIN")
    address = f"postgresql://small:geheim@{empty}"
    with pytest.raises(UserError) as refused:
        ready_databases(address)
    sql = needed_sql("small")
    assert sql in str(refused.value)
    assert "geheim" not in str(refused.value)
    # What the administrator pastes into psql.
    done = subprocess.run(
        ["psql", f"postgresql://tester@{empty}/postgres", "-v", "ON_ERROR_STOP=1"],
        input=sql.replace(
            "\\connect loraline_prefect",
            f"\\connect postgresql://tester@{empty}/loraline_prefect",
        ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert ready_databases(address) == []


def test_a_server_that_is_away_is_told_without_its_password() -> None:
    with pytest.raises(StageFailed, match=r"127\.0\.0\.1:9") as away:
        ready_databases("postgresql://me:geheim@127.0.0.1:9")
    assert "geheim" not in str(away.value)


@pytest.mark.long
def test_both_databases_are_created_once_and_migrated_each_with_its_own_version(
    empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORALINE_POSTGRES", f"postgresql://tester:x@{empty}")
    home = Home((tmp_path / "home").resolve())
    home.prepare()
    where = databases(home, os.environ)
    assert ready_databases(where.server) == ["loraline_prefect", "loraline_mlflow"]
    assert ready_databases(where.server) == []
    assert query(empty, "loraline_prefect", "SELECT 1 FROM pg_extension WHERE extname = 'pg_trgm'")
    settings = StackSettings(project=tmp_path)
    # Twice: what is there already is left as it is.
    for _ in range(2):
        migrate(home, settings, where)
    versions = {
        name: query(empty, name, "SELECT version_num FROM alembic_version")
        for name in ("loraline_prefect", "loraline_mlflow")
    }
    assert versions["loraline_prefect"]
    assert versions["loraline_prefect"] != versions["loraline_mlflow"]
    assert query(empty, "loraline_prefect", "SELECT count(*) FROM flow_run") == [(0,)]
    assert query(empty, "loraline_mlflow", "SELECT count(*) FROM registered_models") == [(0,)]
    assert not (home.mlflow / "mlflow.db").exists()
    assert not (home.prefect / "prefect.db").exists()


def test_the_documented_backup_of_both_databases_can_be_put_back(
    empty: str, tmp_path: Path
) -> None:
    """The page's own lines, typed as they stand there, over databases that changed meanwhile."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "operations.md").read_text()
    blocks = [it for it in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "pg_" in it]
    save, restore = blocks
    host, _, port = empty.partition(":")
    names_server = re.compile(r"^export PGHOST=host PGPORT=5432 PGUSER=user$", re.MULTILINE)
    assert names_server.search(save)
    save = names_server.sub("", save)
    anew, over = restore.split("\n", 1)
    assert anew.startswith("psql ")
    ready_databases(f"postgresql://tester:x@{empty}")
    names = ("loraline_prefect", "loraline_mlflow")
    for name in names:
        query(empty, name, "CREATE TABLE kept (what text PRIMARY KEY)")
        query(empty, name, f"INSERT INTO kept VALUES ('{name}')")

    def typed(lines: str) -> None:
        done = subprocess.run(
            ["bash", "-ec", lines],
            cwd=tmp_path,
            env={**os.environ, "PGHOST": host, "PGPORT": port, "PGUSER": "tester"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{lines}\n{done.stderr}"

    typed(save)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.dump")} == {0o600}
    for name in names:
        query(empty, name, "DELETE FROM kept")
    query(empty, "loraline_mlflow", "DROP TABLE kept")
    typed(over)
    for name in names:
        assert query(empty, name, "SELECT what FROM kept") == [(name,)]
    # Onto another server, which has neither database.
    for name in names:
        query(empty, "postgres", f"DROP DATABASE {name} WITH (FORCE)")
    typed(restore)
    for name in names:
        assert query(empty, name, "SELECT what FROM kept") == [(name,)]
    # The extension came back with it.
    assert query(empty, "loraline_prefect", "SELECT 1 FROM pg_extension WHERE extname = 'pg_trgm'")


@pytest.fixture
def keeper(empty: str) -> Iterator[str]:
    """A user who is asked for a password, which is `geheim`; the others are trusted."""
    ((file,),) = query(empty, "postgres", "SHOW hba_file")
    rules = Path(str(file))
    before = rules.read_text()
    rules.write_text(f"host all keeper 127.0.0.1/32 scram-sha-256\n{before}")
    query(empty, "postgres", "CREATE ROLE keeper SUPERUSER LOGIN PASSWORD 'geheim'")
    query(empty, "postgres", "SELECT pg_reload_conf()")
    yield "keeper"
    rules.write_text(before)
    query(empty, "postgres", "SELECT pg_reload_conf()")


@pytest.mark.slow
def test_a_whole_stack_keeps_its_data_in_postgresql_also_when_the_password_is_rotated(
    empty: str, keeper: str, tmp_path: Path
) -> None:
    ports = []
    for _ in range(4):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(str(free.getsockname()[1]))
    home = Home((tmp_path / "home").resolve())
    environment = {
        **os.environ,
        "LORALINE_HOME": str(home.root),
        "LORALINE_POSTGRES": f"postgresql://{keeper}:geheim@{empty}",
    }
    (tmp_path / "project").mkdir()

    def loraline(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "flows.cli", *arguments],
            cwd=tmp_path / "project",
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )

    try:
        done = loraline("up", "--prefect-port", ports[0], "--mlflow-port", ports[1])
        assert done.returncode == 0, done.stderr[-3000:]
        assert query(
            empty, "loraline_prefect", "SELECT name FROM deployment WHERE name = 'retrain'"
        )
        pools = query(empty, "loraline_prefect", "SELECT name FROM work_pool ORDER BY name")
        assert ("loraline",) in pools
        # As by a machine that was replaced, and is switched on again.
        others = ("--prefect-port", ports[2], "--mlflow-port", ports[3])
        refused = loraline("up", "--home", str(tmp_path / "restored"), *others)
        assert refused.returncode == NO_RESTART, refused.stderr
        assert "has a stack already" in refused.stderr
        # Nobody else reads the password: no argument of a process, no file, no log.
        for process in leftovers.processes(home):
            assert "geheim" not in " ".join(process.cmdline())
        for file in home.root.rglob("*"):
            if file.is_file():
                assert b"geheim" not in file.read_bytes(), file
        for name in ("loraline_prefect", "loraline_mlflow"):
            dump = subprocess.run(
                ["pg_dump", f"postgresql://tester@{empty}/{name}"], capture_output=True, timeout=120
            )
            assert dump.returncode == 0, dump.stderr
            assert b"geheim" not in dump.stdout, name
        # A fresh server process finds the data again.
        assert loraline("down").returncode == 0
        # Another shell, which knows nothing of PostgreSQL, and whose SQLite would be empty.
        address = environment.pop("LORALINE_POSTGRES")
        for command in ("up", "gc"):
            refused = loraline(command)
            assert refused.returncode == 2, refused.stderr
            assert "PostgreSQL" in refused.stderr
        # Until the stack's own file has it.
        kept = home.root / "stack" / "environment"
        kept.write_text(f"LORALINE_POSTGRES={address}\n")
        assert loraline("up").returncode == 0
        # As the page has it: stop the stack, change the password in PostgreSQL, then the variable, and start.
        assert loraline("down").returncode == 0
        query(empty, "postgres", f"ALTER ROLE {keeper} PASSWORD 'rotated'")
        forgotten = loraline("up")
        assert forgotten.returncode == 1, forgotten.stderr
        assert "password authentication failed" in forgotten.stderr
        assert "geheim" not in forgotten.stderr
        kept.write_text(f"LORALINE_POSTGRES={address.replace('geheim', 'rotated')}\n")
        assert loraline("up").returncode == 0
        kept.unlink()
    finally:
        loraline("down")
    assert not leftovers.processes(home)
    assert not (home.prefect / "prefect.db").exists()
    assert not (home.mlflow / "mlflow.db").exists()
