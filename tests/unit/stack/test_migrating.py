"""A kill at any moment of an upgrade leaves MLflow's database as it was, and the next one finishes it."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tasks.errors import StageFailed
from tasks.home import Home
from tasks.tracking import Tracker

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[3]
OLD = """
import sys
import sqlalchemy
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base

uri = sys.argv[1]
engine = sqlalchemy.create_engine(uri)
Base.metadata.create_all(engine)
config = _get_alembic_config(uri)
revisions = [it.revision for it in ScriptDirectory.from_config(config).walk_revisions()]
with engine.begin() as connection:
    config.attributes["connection"] = connection
    command.upgrade(config, revisions[10])
with engine.begin() as connection:
    connection.execute(sqlalchemy.text(
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
        "VALUES (7, 'nightly', 'nowhere', 'active')"
    ))
print(revisions[10], revisions[0])
"""
"""A database ten revisions before the newest, with an experiment."""
UPGRADE = """
import os, signal, sys
import sqlalchemy
from flows.stack import migrating

migrations, last = 0, int(sys.argv[1])

@sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
def count(connection, cursor, statement, *rest):
    global migrations
    migrations += "UPDATE alembic_version" in statement
    if migrations == last:
        os.kill(os.getpid(), signal.SIGKILL)

migrating.main("mlflow")
"""
"""Ends itself when this many migrations were made, the last one but for its number."""


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def found(database: Path) -> tuple[str, list[str]]:
    """Its revision, and the experiments in it."""
    with closing(sqlite3.connect(database)) as reading:
        assert reading.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        revision = str(reading.execute("SELECT version_num FROM alembic_version").fetchone()[0])
        names = [str(name) for (name,) in reading.execute("SELECT name FROM experiments")]
    return revision, names


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_killed_upgrade_changes_nothing_and_the_next_one_finishes_it(
    tmp_path: Path, journal: str
) -> None:
    database = tmp_path / "mlflow" / "mlflow.db"
    database.parent.mkdir()
    uri = f"sqlite:///{database}"
    made = python(OLD, uri)
    assert made.returncode == 0, made.stderr[-3000:]
    old, new = made.stdout.split()
    with closing(sqlite3.connect(database)) as there:
        # A stack's database has its journal ahead.
        there.execute(f"PRAGMA journal_mode={journal}")
    home = {"LORALINE_HOME": str(tmp_path), "MLFLOW_BACKEND_STORE_URI": uri}
    for migrations in ("1", "5", "10"):
        killed = python(UPGRADE, migrations, **home)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
        assert found(database) == (old, ["nightly"])
    done = python(UPGRADE, "-1", **home)
    assert done.returncode == 0, done.stderr[-3000:]
    assert found(database) == (new, ["Default", "nightly"])
    # As it was, for whoever wants to go back; nothing else is left of it.
    assert found(database.with_name("mlflow-before-upgrade.db")) == (old, ["nightly"])
    assert sorted(it.name for it in database.parent.glob("*.db*")) == [
        "mlflow-before-upgrade.db",
        "mlflow.db",
    ]


def test_a_database_of_a_newer_mlflow_is_refused_and_left_alone(tmp_path: Path) -> None:
    database = Home(tmp_path).mlflow / "mlflow.db"
    database.parent.mkdir(parents=True)
    with closing(sqlite3.connect(database)) as there:
        there.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        there.execute("INSERT INTO alembic_version VALUES ('of tomorrow')")
        there.commit()
    before = database.read_bytes()
    with pytest.raises(StageFailed, match="another MLflow than the installed"):
        assert Tracker(Home(tmp_path), f"sqlite:///{database}").client
    assert database.read_bytes() == before
    assert [it.name for it in database.parent.glob("*.db*")] == ["mlflow.db"]


def test_a_torn_database_is_told_with_the_way_out_and_left_alone(tmp_path: Path) -> None:
    database = Home(tmp_path).mlflow / "mlflow.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(StageFailed, match=r"is damaged .* Put back a backup"):
        assert Tracker(Home(tmp_path), f"sqlite:///{database}").client
    assert database.read_bytes() == bytes(range(256)) * 8
