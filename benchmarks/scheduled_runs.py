"""A stack of its own on SQLite whose worker does one short scheduled run after the other."""

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flows.stack.api import Json, PrefectApi

ROOT = Path(__file__).resolve().parent.parent
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class Stack:
    """What `loraline up` started in a folder."""

    folder: Path
    api: PrefectApi

    def database_kb(self, tables: str = "%") -> float:
        """Of Prefect's database what is in use, its journal's part too, by tables and indexes of such names."""
        file = self.folder / ".loraline" / "prefect" / "prefect.db"
        with closing(sqlite3.connect(file, timeout=60)) as database:
            sql = "SELECT sum(pgsize) FROM dbstat WHERE name LIKE ?"
            return float(database.execute(sql, (tables,)).fetchone()[0]) / 1e3

    def process(self, part: str) -> int:
        """Id of a part's process."""
        status = json.loads(_loraline(self.folder, "status", "--json"))
        return next(int(it["pid"]) for it in status["parts"] if it["name"] == part)

    def memory_mb(self, pid: int) -> float:
        """Resident memory of a process, without its children."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    @property
    def lock_errors(self) -> int:
        """How often a log says that the database was locked."""
        logs = (self.folder / ".loraline" / "logs").rglob("*.log*")
        return sum(
            it.read_text(errors="replace").lower().count("database is locked") for it in logs
        )

    def deployment(self) -> str:
        """The id of `retrain`."""
        wanted = {"deployments": {"name": {"any_": ["retrain"]}}}
        return str(self.api.ask("POST", "/deployments/filter", wanted)[0]["id"])

    def run_once(self, recipe: Path) -> None:
        """Start a run as the form does, and wait for its good end."""
        wanted = {"parameters": {"recipe": str(recipe)}, "state": {"type": "SCHEDULED"}}
        path = f"/deployments/{self.deployment()}/create_flow_run"
        run = self.api.ask("POST", path, wanted)["id"]
        while (state := self.api.ask("GET", f"/flow_runs/{run}")["state"])["type"] not in ENDED:
            time.sleep(1)
        if state["type"] != "COMPLETED":
            raise SystemExit(f"The first run ended {state}")

    def run_on_schedule(
        self, recipe: Path, count: int, seconds: float, look: Callable[[int], None]
    ) -> list[Json]:
        """Have this many runs done by the worker, of which one is due every so many seconds: their final states.

        `look` hears every two seconds how many there are.
        """
        path = f"/deployments/{self.deployment()}/schedules"
        schedule = {
            "schedule": {"interval": seconds, "anchor_date": datetime.now(UTC).isoformat()},
            "parameters": {"recipe": str(recipe)},
            "active": True,
            "slug": "soak",
        }
        made = self.api.ask("POST", path, [schedule])[0]["id"]
        by_schedule = {"created_by": {"id_": [made]}, "state": {"type": {"any_": [*ENDED]}}}
        while len(found := self.api.flow_runs(by_schedule)) < count:
            look(len(found))
            time.sleep(2)
        self.api.ask("DELETE", f"{path}/{made}")
        return [run["state"] for run in found]


@contextlib.contextmanager
def stack(folder: Path) -> Iterator[Stack]:
    """A stack with its worker and watchdog in this folder; nothing of it is left afterwards."""
    folder.mkdir()
    ports = [free_port(), free_port()]
    options = ("--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1]))
    try:
        _loraline(folder, "up", *options, "--json")
        yield Stack(folder, PrefectApi(f"http://127.0.0.1:{ports[0]}/api", timeout_seconds=60))
    finally:
        _loraline(folder, "down")


def _loraline(folder: Path, *arguments: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "LORALINE_"))}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "flows.cli", *arguments],
        cwd=folder,
        env={**inherited, "HOME": str(folder / "nobody"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def free_port() -> int:
    """A port of loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
