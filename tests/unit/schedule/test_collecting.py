"""The disk stays bounded, and nothing goes that a version, a resumable run or one of the last runs needs."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import STAGES, Outcome, StageTiming
from tasks.errors import StageFailed
from tasks.home import Home
from tasks.progress import announce
from tasks.retention import collecting
from tasks.retention.collecting import collect, plan
from tasks.retention.ledger import entries, recorded
from tasks.retention.needs import Registered
from tasks.store import Store
from tasks.turn import adapter_turn


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path / "home")
    found.prepare()
    return found


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], Registered]:
    """The registry, as far as collecting asks it."""
    found: dict[tuple[str, str], Registered] = {}
    monkeypatch.setattr(collecting, "registered_versions", lambda _: found)
    monkeypatch.setattr(collecting, "deleted_runs", lambda _: [])
    return found


TRACKER: Any = object()


def night(
    home: Home,
    name: str,
    number: int,
    *,
    size: int = 50_000,
    outcome: str = "registered",
    version: str | None = None,
) -> dict[str, str]:
    """One run: five outputs, a log, a report and a checkpoint, as the stages leave them."""
    store = Store(home.store)
    keys = {stage: f"{number:04d}{name}{stage}".ljust(64, "0") for stage in STAGES}
    with recorded(home, name, 5):
        stages = {}
        for stage in STAGES:

            def build(folder: Path, stage: str = stage) -> None:
                record = {"name": name, "version": version, "stages": keys}
                text = json.dumps(record) if stage == "registration" else "x"
                file = "version.json" if stage == "registration" else "data"
                (folder / file).write_text(text if stage == "registration" else text * size)

            store.publish(stage, keys[stage], build)  # type: ignore[arg-type]
            stages[stage] = StageTiming(fingerprint=keys[stage], reused=False, seconds=0.0)
            known = Outcome(
                outcome="failed", reason="", mlflow_run_id=f"run{number}", stages=stages
            )
            announce("outcome", outcome=known.model_dump(mode="json"))
        (home.logs / f"training-{keys['training'][:16]}.log").write_text("x" * size)
        (home.logs / f"run-{number:04d}.log").write_text("x" * size)
        report = home.reports / f"run{number}"
        report.mkdir(parents=True)
        (report / "report.html").write_text("x" * size)
        last = known.model_copy(update={"outcome": outcome})
        announce("outcome", outcome=last.model_dump(mode="json"))
    return keys


def size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_fifty_nights_stay_within_what_five_need(
    home: Home, versions: dict[tuple[str, str], Registered]
) -> None:
    sizes = []
    for number in range(50):
        # One version is champion, the others are old ones that `loraline prune` has not deleted yet.
        aliases = ("champion",) if number == 3 else ()
        versions["a", str(number)] = Registered(aliases, f"run{number}")
        versions.pop(("a", str(number - 10)), None) if number != 13 else None
        night(home, "a", number, version=str(number))
        collect(home, TRACKER, grace_seconds=0)
        sizes.append(size_of(home.root))
    assert max(sizes[15:]) <= 1.2 * sizes[15]
    assert len(entries(home)["a"]) == 5
    left = {path.name[:4] for path in (home.store / "dataset").glob("[0-9]*")}
    assert left == {"0003", "0045", "0046", "0047", "0048", "0049"}


def test_without_yes_nothing_is_touched(
    home: Home, versions: dict[tuple[str, str], Registered]
) -> None:
    for number in range(8):
        night(home, "a", number)
    before = sorted(home.root.rglob("*"))
    found = plan(home, TRACKER, grace_seconds=0)
    assert found.goes
    assert found.bytes > 0
    assert not found.removed
    assert sorted(home.root.rglob("*")) == before


def test_each_adapter_keeps_its_own_last_runs(
    home: Home, versions: dict[tuple[str, str], Registered]
) -> None:
    rare = night(home, "monthly", 1)
    for number in range(2, 12):
        night(home, "nightly", number)
    collect(home, TRACKER, grace_seconds=0)
    assert (home.store / "training" / rare["training"]).is_dir()
    assert (home.reports / "run1").is_dir()


def test_checkpoints_of_a_run_that_can_be_gone_on_with_stay_and_outdated_ones_go(
    home: Home, versions: dict[tuple[str, str], Registered]
) -> None:
    def working(keys: dict[str, str]) -> Path:
        folder = home.work / f"training-{keys['training'][:16]}"
        (folder / "checkpoints" / "checkpoint-5").mkdir(parents=True)
        tokens = home.store / "tokenization" / keys["tokenization"]
        (folder / "job.json").write_text(json.dumps({"tokens": str(tokens)}))
        return folder

    outdated = working(night(home, "a", 1, outcome="failed"))
    for number in range(2, 9):
        night(home, "a", number)
    crashed = [working(night(home, "a", number, outcome="failed")) for number in range(9, 16)]
    collect(home, TRACKER, grace_seconds=0, keep_runs=2)
    assert not outdated.exists()
    assert all(folder.is_dir() for folder in crashed)


def test_what_a_running_run_uses_stays(
    home: Home, versions: dict[tuple[str, str], Registered]
) -> None:
    keys = night(home, "a", 1, outcome="failed")
    (path, entry), *_ = entries(home)["a"]
    path.write_text(json.dumps({**entry.model_dump(mode="json"), "ended": None}))
    for number in range(2, 9):
        night(home, "a", number)
    with adapter_turn(home, "a", run="now"):
        collect(home, TRACKER, grace_seconds=0)
        assert (home.store / "dataset" / keys["dataset"]).is_dir()
    collect(home, TRACKER, grace_seconds=0)
    assert not (home.store / "dataset" / keys["dataset"]).exists()


def test_what_was_reused_a_moment_ago_stays_though_no_run_has_told_of_it_yet(
    home: Home, versions: dict[tuple[str, str], Registered]
) -> None:
    keys = night(home, "a", 1)
    for number in range(2, 9):
        night(home, "a", number)
    hour = time.time() - 3600
    for manifest in home.store.rglob("manifest.json"):
        os.utime(manifest, (hour, hour))
    Store(home.store).publish("dataset", keys["dataset"], lambda _: None)
    collect(home, TRACKER)
    assert (home.store / "dataset" / keys["dataset"]).is_dir()
    assert not (home.store / "training" / keys["training"]).exists()


def test_when_nobody_knows_the_versions_nothing_goes(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: object) -> dict[tuple[str, str], Registered]:
        raise StageFailed("MLflow is away")

    monkeypatch.setattr(collecting, "registered_versions", away)
    for number in range(8):
        night(home, "a", number)
    with pytest.raises(StageFailed, match="away"):
        collect(home, TRACKER, grace_seconds=0)
    assert len(list((home.store / "dataset").glob("[0-9]*"))) == 8


def test_a_disk_without_room_refuses_the_run_and_says_how_to_make_some(
    home: Home, versions: dict[tuple[str, str], Registered]
) -> None:
    collecting.ensure_free(home, TRACKER, 0.0)
    with pytest.raises(StageFailed, match=r"retention\.min_free_gb asks for 1e\+09"):
        collecting.ensure_free(home, TRACKER, 1e9)
