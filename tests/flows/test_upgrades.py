"""Databases of older versions are brought to the installed ones by `up`, once, before anything opens them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy

from flows.stack.databases import MLFLOW_DATABASE, PREFECT_DATABASE, Databases, databases
from flows.stack.parts import part_environment, parts
from flows.stack.postgres import ready_databases
from flows.stack.settings import POSTGRES, StackSettings
from tasks.home import Home
from tests.running_stack import running_stack
from tests.unit.conftest import postgres
from tests.unit.stack.test_migrating import OLD, python

__all__ = ["postgres"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def ask(url: str, sql: str) -> list[Any]:
    """What a database answers, without its server."""
    engine = sqlalchemy.create_engine(url.replace("+aiosqlite", "").replace("asyncpg", "psycopg"))
    with engine.begin() as connection:
        answer = connection.execute(sqlalchemy.text(sql))
        found = answer.scalars().all() if answer.returns_rows else []
    engine.dispose()
    return list(found)


def version(url: str) -> str:
    (found,) = ask(url, "SELECT version_num FROM alembic_version")
    return str(found)


def prefect_of_old(home: Home, where: Databases, folder: Path) -> None:
    """Make Prefect's database as it was three migrations ago, with a flow."""
    part = parts(StackSettings(project=folder))[0]
    home.prefect.mkdir(parents=True)
    command = "prefect server database upgrade --yes --revision=head-3"
    subprocess.run(
        [sys.executable, "-P", "-m", *command.split()],
        cwd=folder,
        env=part_environment(part, home, StackSettings(project=folder), where, os.environ),
        check=True,
        timeout=300,
    )
    ask(where.prefect, "INSERT INTO flow (name) VALUES ('nightly')")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_both_databases_of_an_older_stack_are_upgraded_before_anything_opens_them(
    kind: str,
    loraline: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "postgresql":
        server = request.getfixturevalue("postgres")
        monkeypatch.setenv(POSTGRES, server.removesuffix("/postgres"))
    home = Home((tmp_path / ".loraline").resolve())
    home.prepare()
    where = databases(home, os.environ)
    if where.server:
        import psycopg

        with psycopg.connect(server, autocommit=True) as connection:
            for name in (PREFECT_DATABASE, MLFLOW_DATABASE):
                connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
        ready_databases(where.server)
    prefect_of_old(home, where, tmp_path)
    home.mlflow.mkdir(exist_ok=True)
    made = python(OLD, where.mlflow)
    assert made.returncode == 0, made.stderr[-3000:]
    old, newest = made.stdout.split()
    assert version(where.mlflow) == old
    before = version(where.prefect)
    with running_stack(loraline(tmp_path)) as stack:
        flows = stack.api.ask("POST", "/flows/filter", {"flows": {"name": {"any_": ["nightly"]}}})
        assert [it["name"] for it in flows] == ["nightly"]
        assert stack.tracker.client.get_experiment_by_name("nightly") is not None
        assert version(where.mlflow) == newest
        assert version(where.prefect) != before
        # Nobody else did it, and whoever opens a database came later.
        supervisor = psutil.Process(stack.status()["supervisor_pid"]).create_time()
        for name in ("prefect", "mlflow"):
            assert (home.logs / f"{name}-migration.log").stat().st_mtime < supervisor, name
            assert ":Running upgrade" not in (home.logs / f"{name}.log").read_text()
        assert (home.logs / "prefect-migration.log").read_text().count(":Running upgrade") == 3
