"""What each run of an adapter used: one small file a run, so that a later one knows what may go."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError

from tasks.home import Home
from tasks.progress import Event, listening


class Entry(BaseModel):
    """One run."""

    name: str
    """The adapter's."""
    started: datetime
    ended: datetime | None = None
    """None: it runs, or was killed."""
    outcome: str = "failed"
    """As `artifacts.Outcome` has it."""
    keep_runs: int = Field(default=5, ge=1)
    stages: dict[str, str] = {}
    """Stage -> fingerprint of the output that was made or reused."""
    mlflow_run_id: str | None = None
    started_from: str | None = None
    """URI of the version that its training starts from; None: the base, or not known by then."""
    flow_run: str | None = None
    """Id in Prefect: attempts that an outage ended have the same."""
    repeats: str | None = None
    """Id of the flow run that crashed, and in this one goes on."""
    as_written: bool = True
    """Whether it trained what the recipe asks for, and not what somebody asked for once (`--set`)."""

    @property
    def succeeded(self) -> bool:
        """Whether nothing of it is left to be gone on with."""
        return self.ended is not None and self.outcome != "failed"


@contextmanager
def recorded(
    home: Home,
    name: str,
    keep_runs: int,
    *,
    flow_run: str | None = None,
    repeats: str | None = None,
    as_written: bool = True,
) -> Iterator[None]:
    """Write down what the run inside the block uses, as it gets there; a kill leaves what was known."""
    now = datetime.now(UTC)
    entry = Entry(
        name=name,
        started=now,
        keep_runs=keep_runs,
        flow_run=flow_run,
        repeats=repeats,
        as_written=as_written,
    )
    folder = home.runs / quote(name, safe="")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}.json"

    def hear(event: Event) -> None:
        if event["event"] == "outcome":
            _take(entry, event["outcome"])
            _write(path, entry)
        elif event["event"] == "stage" and "fingerprint" in event:
            # Prefect's server may be away just when the task ends: what it made is there all the same.
            entry.stages[event["stage"]] = event["fingerprint"]
            _write(path, entry)

    _write(path, entry)
    try:
        with listening(hear):
            yield
    finally:
        entry.ended = datetime.now(UTC)
        _write(path, entry)


def entries(home: Home) -> dict[str, list[tuple[Path, Entry]]]:
    """Every run by adapter, the newest first; a file that cannot be read is no run."""
    found: dict[str, list[tuple[Path, Entry]]] = {}
    for path in sorted(home.runs.glob("*/*.json"), reverse=True):
        try:
            entry = Entry.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            continue
        found.setdefault(entry.name, []).append((path, entry))
    return found


def newest_success(home: Home, name: str) -> datetime | None:
    """When the newest successful run of the adapter, as its recipe is written, began; None without one.

    A run of a time that is still to come, when the clock was ahead, would hide all later ones.
    """
    now = datetime.now(UTC)
    began = (it.started for _, it in entries(home).get(name, []) if it.succeeded and it.as_written)
    return next((moment for moment in began if moment <= now), None)


def done_before(home: Home, name: str, flow_run: str | None, repeats: str | None) -> dict[str, str]:
    """Stage -> fingerprint of what a run got through in earlier attempts, and in the crashed runs that it
    goes on with; of several the newest."""
    runs = entries(home).get(name, [])
    wanted = {it for it in (flow_run, repeats) if it is not None}
    done: dict[str, str] = {}
    # The newest first: a run stands before the one that it repeats.
    for _, entry in runs:
        if entry.flow_run in wanted:
            done = {**entry.stages, **done}
            wanted |= {entry.repeats} if entry.repeats else set()
    return done


def _take(entry: Entry, outcome: dict[str, Any]) -> None:
    entry.outcome = outcome["outcome"]
    entry.mlflow_run_id = outcome["mlflow_run_id"]
    entry.started_from = (outcome.get("started_from") or {}).get("uri")
    entry.stages |= {stage: timing["fingerprint"] for stage, timing in outcome["stages"].items()}


def _write(path: Path, entry: Entry) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(entry.model_dump(mode="json"), indent=1), encoding="utf-8")
    temporary.replace(path)
