"""Bring one server's database to the installed version: `python -P -m flows.stack.migrating prefect|mlflow`.

Run by `loraline up` before anything else opens the databases, each in a process of its own: both
libraries read their settings when they are imported.
"""

import logging
import os
import runpy
import subprocess
import sys

from flows.stack.databases import Databases, write_ahead
from flows.stack.parts import part_environment, parts
from flows.stack.settings import StackSettings
from tasks.errors import StageFailed
from tasks.home import CLOSED, Home, home

_log = logging.getLogger(__name__)


def migrate(state: Home, settings: StackSettings, databases: Databases) -> None:
    """Create or upgrade both databases. Raises: StageFailed with the end of the log."""
    for part in parts(settings)[:2]:
        environment = part_environment(part, state, settings, databases, os.environ)
        folder = state.root / part.name
        folder.mkdir(CLOSED, parents=True, exist_ok=True)
        log = state.logs / f"{part.name}-migration.log"
        with log.open("wb") as stream:
            done = subprocess.run(
                [sys.executable, "-P", "-m", __name__, part.name],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                # Prefect reads settings from the working directory: one of ours.
                cwd=folder,
                env={**environment, "PYTHONSAFEPATH": "1"},
            )
        if done.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            tail = "\n".join(f"  {line}" for line in lines)
            raise StageFailed(
                f"The {part.title}'s database could not be brought to the installed version "
                f"(exit code {done.returncode}). Nothing was started. Last lines:\n{tail}\n"
                f"Full log: {log}\nIf the database is newer than the installed {part.name}, install that "
                "newer version again, or restore the backup that was made before."
            )
    if not databases.server:
        write_ahead(state.mlflow / "mlflow.db")


def main(name: str) -> None:
    """Migrate in this process."""
    if name == "prefect":
        _run("prefect", "server", "database", "upgrade", "--yes")
    else:
        _migrate_mlflow(os.environ["MLFLOW_BACKEND_STORE_URI"])


def _migrate_mlflow(uri: str) -> None:
    from tasks.tracking import Tracker

    tracker = Tracker(home(), uri)
    if uri.startswith("sqlite:"):
        # Made or brought to the installed version by its first client.
        assert tracker.client
        return
    try:
        # Creates the tables where there are none, and refuses those of another version.
        tracker.find_run("loraline-nothing", {})
    except StageFailed as error:
        _log.warning("%s", error)
        # Only this process sees the address: another one's arguments are everybody's to read.
        _run("mlflow", "db", "upgrade", uri)


def _run(*argv: str) -> None:
    sys.argv = list(argv)
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main(sys.argv[1])
