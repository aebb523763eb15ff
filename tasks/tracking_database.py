"""MLflow's SQLite file: its tables are made and brought to the installed version whole or not at all.

MLflow does both whenever a database is opened, and its migrations are no transactions: killed half way, it
can neither use nor finish what it has begun.
"""

import logging
import shutil
import sqlite3
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import StageFailed

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)


def prepare_database(database: Path) -> None:
    """Create the file, or upgrade the one that is there. Nobody else may be doing so.

    What it was before an upgrade stays beside it as `<name>-before-upgrade.db`.

    Raises: StageFailed where the file is damaged, or newer than the installed MLflow. Whenever something is raised, the
    file is as it was.
    """
    if not database.exists():
        _create(database)
    elif _is_of_another_version(database):
        _upgrade(database)


def opened(uri: str) -> "MlflowClient":
    """A client of a SQLite file whose tables are there: the first question makes them."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)
    client.search_registered_models(max_results=1)
    return client


def _create(database: Path) -> None:
    begun = database.parent / "begun"
    # With the journal of one that was killed, which would be played into this one.
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir()
    path = begun / database.name
    opened(f"sqlite:///{path}")
    path.rename(database)
    shutil.rmtree(begun, ignore_errors=True)


def _is_of_another_version(database: Path) -> bool:
    from mlflow.store.db.utils import _get_latest_schema_revision

    with closing(sqlite3.connect(database)) as there:
        try:
            found = there.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:
            # Not of MLflow's making, or not yet: it says so itself.
            return False
        except sqlite3.DatabaseError as error:
            raise StageFailed(
                f"{database} is damaged ({error}). Put back a backup of it; `docs/operations.md` says how. "
                "It was left as it is."
            ) from error
    return found is not None and found[0] != _get_latest_schema_revision()  # type: ignore[no-untyped-call]


def _upgrade(database: Path) -> None:
    from alembic.util import CommandError
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine_with_retry

    before, after = (
        database.with_stem(f"{database.stem}-{it}-upgrade") for it in ("before", "after")
    )
    try:
        with closing(sqlite3.connect(database, isolation_level=None, timeout=60)) as there:
            # Who writes meanwhile waits.
            there.execute("BEGIN IMMEDIATE")
            _copy(database, after)
            engine = create_sqlalchemy_engine_with_retry(f"sqlite:///{after}")  # type: ignore[no-untyped-call]
            try:
                _upgrade_db(engine)  # type: ignore[no-untyped-call]
            finally:
                engine.dispose()
            _copy(database, before)
            there.execute("ROLLBACK")
            # One transaction: when it is killed, whoever opens the file next takes it back.
            with closing(sqlite3.connect(after)) as upgraded:
                upgraded.backup(there)
    except CommandError as error:
        raise StageFailed(
            f"{database} was written by another MLflow than the installed {version('mlflow')}, which does "
            "not know its tables; probably by a newer one. Install that one again, or put back a backup "
            "from before it was installed."
        ) from error
    finally:
        _remove(after)
    _log.warning("%s was upgraded to the installed MLflow; as it was: %s", database, before)


def _copy(database: Path, copy: Path) -> None:
    _remove(copy)
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def _remove(database: Path) -> None:
    for path in database.parent.glob(f"{database.name}*"):
        path.unlink()
