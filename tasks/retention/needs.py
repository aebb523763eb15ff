"""What is still needed: by registered versions, by running and resumable runs, by the last runs of each adapter."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.artifacts import STAGES
from tasks.home import Home
from tasks.retention.ledger import Entry, entries
from tasks.retention.readers import living_readers
from tasks.turn import is_taken

VERSION_RECORD = "version.json"


@dataclass(frozen=True)
class Registered:
    """What the registry says of a version."""

    aliases: tuple[str, ...]
    mlflow_run_id: str
    adapter_sha256: str = ""
    started_from: str = ""
    """URI of the version that its training started from; empty: the base."""
    model_id: str = ""
    """The logged model that has its files; empty where it came from elsewhere."""


@dataclass
class Needs:
    """The reasons to keep things; what has none may go."""

    outputs: dict[tuple[str, str], str] = field(default_factory=dict)
    """(stage, fingerprint) -> why."""
    mlflow_runs: set[str] = field(default_factory=set)
    """Whose reports stay."""
    adapters: set[str] = field(default_factory=set)
    """sha256 of the adapters behind aliases, and of those being read: their downloaded copies stay."""
    starts: set[str] = field(default_factory=set)
    """URIs of versions that trainings start from: a replay needs their rows, which only the store has."""
    since: datetime | None = None
    """When the oldest run that is kept began: logs from before may go. None: nothing is known to have run."""
    records: set[Path] = field(default_factory=set)
    """The runs' own files in the ledger."""

    def keep(self, stages: Iterable[tuple[str, str]], why: str) -> None:
        """Note a reason; the first one stays."""
        for stage in stages:
            self.outputs.setdefault(stage, why)


def needs_of(
    home: Home, versions: dict[tuple[str, str], Registered], keep_runs: int | None = None
) -> Needs:
    """What must stay in `home`.

    `versions`: (name, number) -> every version that the registry has. A version is whole in MLflow: its
    adapter, its card and the ids of its rows travel with it. What a run asks the store for is its
    evaluation, for one that others start from its dataset too, and for one with an alias every stage
    stays. `keep_runs` overrides what recipes say.
    """
    aliased = [it for it in versions.values() if it.aliases]
    needs = Needs(
        adapters={it.adapter_sha256 for it in aliased}, starts={it.started_from for it in aliased}
    )
    for name, runs in entries(home).items():
        history = [entry for _, entry in runs]
        count = keep_runs or history[0].keep_runs
        running = _running(history) if is_taken(home, name) else None
        resumable = _resumable(history, count)
        for number, (path, entry) in enumerate(runs):
            if number < count:
                why = f"one of the last {count} runs of {name}"
            elif number in resumable:
                why = f"a run of {name} that can be gone on with"
            elif number == running:
                why = f"a run of {name} that may be running"
            else:
                continue
            _keep_run(needs, path, entry, why)
    for folder in (home.store / "registration").glob("*/"):
        _keep_version(needs, folder, versions)
    for reader in living_readers(home):
        needs.keep(reader.outputs, "an evaluation that is running")
        needs.adapters |= reader.adapters
    return needs


def _running(history: list[Entry]) -> int | None:
    """Which run has the adapter's turn: it is one run's at a time, so all others without an end were killed."""
    return next((number for number, entry in enumerate(history) if entry.ended is None), None)


def _resumable(history: list[Entry], most: int) -> set[int]:
    """Which runs can be gone on with: none of theirs came to anything since the last success.

    Kept are those of the newest `most` inputs: a training that fails on new data each night would fill
    the disk, and nobody goes back to older data than that. However often one training was begun, it
    counts once, and of its attempts those stay that got further than later ones.
    """
    trainings: list[dict[str, str]] = []
    found: set[int] = set()
    for number, entry in enumerate(history):
        if entry.succeeded:
            break
        known = next((it for it in trainings if _agree(it, entry.stages)), None)
        if known is None:
            if len(trainings) == most:
                continue
            known = {}
            trainings.append(known)
        if entry.stages.keys() - known.keys():
            found.add(number)
            known.update(entry.stages)
    return found


def _agree(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether two runs made the same outputs, as far as both got."""
    return all(one[stage] == other[stage] for stage in one.keys() & other.keys())


def _keep_run(needs: Needs, path: Path, entry: Entry, why: str) -> None:
    needs.keep(entry.stages.items(), why)
    needs.records.add(path)
    needs.starts |= {entry.started_from} if entry.started_from else set()
    if entry.mlflow_run_id:
        needs.mlflow_runs.add(entry.mlflow_run_id)
    if needs.since is None or entry.started < needs.since:
        needs.since = entry.started


def _keep_version(needs: Needs, folder: Path, versions: dict[tuple[str, str], Registered]) -> None:
    try:
        record: dict[str, Any] = json.loads((folder / VERSION_RECORD).read_text(encoding="utf-8"))
        found = versions.get((record["name"], str(record["version"])))
        stages: dict[str, str] = record["stages"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if found is None:
        return
    why = f"version {record['version']} of {record['name']}"
    kept: Sequence[str] = ("evaluation",)
    if found.aliases:
        kept = STAGES
        why += f" ({', '.join(found.aliases)})"
    elif f"models:/{record['name']}/{record['version']}" in needs.starts:
        kept = ("dataset", "evaluation")
        why += ", which a training starts from"
    needs.keep([("registration", folder.name)], why)
    needs.keep([(stage, stages[stage]) for stage in kept if stage in stages], why)
    needs.mlflow_runs.add(found.mlflow_run_id)
