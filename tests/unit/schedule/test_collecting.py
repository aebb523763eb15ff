"""The disk stays bounded, and nothing goes that a version, a resumable run or one of the last runs needs."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.cli import main
from flows.stack.api import PrefectApi
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
    monkeypatch.setattr(collecting, "is_due", lambda *_: False)
    monkeypatch.setattr(collecting, "purge", lambda *_: [])
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
    start: str | None = None,
    checkpoint: int = 0,
) -> dict[str, str]:
    """One run: five outputs, a log, a report and a checkpoint of so many bytes, as the stages leave them."""
    store = Store(home.store)
    keys = {stage: f"{number:04d}{name}{stage}".ljust(64, "0") for stage in STAGES}
    with recorded(home, name, 5):
        stages = {}
        for stage in STAGES:

            def build(folder: Path, stage: str = stage) -> None:
                record = {"name": name, "version": version, "stages": keys}
                if stage == "registration":
                    (folder / "version.json").write_text(json.dumps(record))
                else:
                    fill(folder / "data", size)

            store.publish(stage, keys[stage], build)  # type: ignore[arg-type]
            stages[stage] = StageTiming(fingerprint=keys[stage], reused=False, seconds=0.0)
            known = Outcome(
                outcome="failed",
                reason="",
                mlflow_run_id=f"run{number}",
                stages=stages,
                started_from=start and {"uri": start},
            )
            announce("outcome", outcome=known.model_dump(mode="json"))
        (home.logs / f"training-{keys['training'][:16]}.log").write_text("x" * size)
        (home.logs / f"run-{number:04d}.log").write_text("x" * size)
        if checkpoint:
            folder = home.work / f"training-{keys['training'][:16]}"
            folder.mkdir(parents=True)
            tokens = home.store / "tokenization" / keys["tokenization"]
            (folder / "job.json").write_text(json.dumps({"tokens": str(tokens)}))
            fill(folder / "checkpoint-1", checkpoint)
        report = home.reports / f"run{number}"
        report.mkdir(parents=True)
        (report / "report.html").write_text("x" * size)
        last = known.model_copy(update={"outcome": outcome})
        announce("outcome", outcome=last.model_dump(mode="json"))
    return keys


def fill(path: Path, size: int) -> None:
    """A file of this length; a long one costs the disk of the tests nothing."""
    if size < 1_000_000:
        path.write_text("x" * size)
    else:
        path.touch()
        os.truncate(path, size)


def age(home: Home, seconds: float) -> None:
    """Let everything in the home be older by so much."""
    for path in home.root.rglob("*"):
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


def size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_fifty_nights_fit_on_a_disk_of_200_mb(
    home: Home, versions: dict[tuple[str, str], Registered], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, most, made = 200_000_000, 0, 0
    monkeypatch.setattr(collecting, "_free_gb", lambda it: (disk - size_of(it.root)) / 1e9)
    for number in range(50):
        collecting.ensure_free(home, TRACKER, 0.05)
        before = size_of(home.root)
        # One version is champion, the others are old ones that `loraline prune` has not deleted yet.
        versions["a", str(number)] = Registered(
            ("champion",) if number == 3 else (), f"run{number}"
        )
        versions.pop(("a", str(number - 10)), None) if number != 13 else None
        outcome = "failed" if number % 7 == 5 else "registered"
        night(
            home,
            "a",
            number,
            size=2_000_000,
            checkpoint=4_000_000,
            outcome=outcome,
            version=str(number),
        )
        most, made = max(most, size_of(home.root)), made + size_of(home.root) - before
        age(home, 86_400)
        if outcome != "failed":
            collect(home, TRACKER)
    assert made > 3 * disk
    assert most < disk
    assert len(entries(home)["a"]) == 5
    kept = {"0003", "0045", "0046", "0047", "0048", "0049"}
    for stage in ("dataset", "tokenization", "training"):
        assert {path.name[:4] for path in (home.store / stage).glob("[0-9]*")} == kept, stage
    judged = {path.name[:4] for path in (home.store / "evaluation").glob("[0-9]*")}
    assert judged == {"0003", *(f"{number:04d}" for number in range(40, 50))}
    assert {path.name[9:13] for path in home.work.iterdir()} == kept
    assert {path.name for path in home.reports.iterdir()} == {f"run{int(it)}" for it in judged}


def test_a_full_disk_is_collected_before_the_next_run_is_refused(
    home: Home, versions: dict[tuple[str, str], Registered], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        night(home, "a", number, size=2_000_000)
    age(home, 86_400)
    disk = size_of(home.root) + 1_000_000
    monkeypatch.setattr(collecting, "_free_gb", lambda it: (disk - size_of(it.root)) / 1e9)
    collecting.ensure_free(home, TRACKER, 0.05)
    assert len(entries(home)["a"]) == 5
    with pytest.raises(StageFailed, match="Nothing was trained"):
        collecting.ensure_free(home, TRACKER, 0.15)


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


@pytest.fixture
def typed(
    home: Home,
    versions: dict[tuple[str, str], Registered],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """What `loraline gc` with these arguments answers."""
    monkeypatch.setenv("LORALINE_HOME", str(home.root))
    monkeypatch.setattr("tasks.tracking.reachable_tracker", lambda _: TRACKER)

    def answer(*arguments: str) -> str:
        assert main(["gc", *arguments]) == 0
        return capfd.readouterr().out

    return answer


@pytest.mark.parametrize("arguments", [[], ["--yes"]])
def test_the_command_says_who_deletes_old_runs_of_prefect(
    typed: Callable[..., str], arguments: list[str]
) -> None:
    told = typed(*arguments).splitlines()
    assert told[-1] == "Prefect's server deletes its own runs, 90 days after their end."


@pytest.mark.parametrize("arguments", [[], ["--yes"]])
def test_a_server_that_does_not_answer_does_not_keep_the_disk_full(
    typed: Callable[..., str],
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    away = PrefectApi("http://127.0.0.1:9/api")
    monkeypatch.setattr("flows.stack.long_ended.own_prefect", lambda _: away)
    done = json.loads(typed("--json", *arguments))
    assert "Prefect does not answer" in caplog.text
    assert done["long_ended_prefect_runs"] is None
    assert done["removed"] is bool(arguments)


def test_each_adapter_keeps_its_own_last_runs(
    home: Home, versions: dict[tuple[str, str], Registered]
) -> None:
    rare = night(home, "monthly", 1)
    for number in range(2, 12):
        night(home, "nightly", number)
    collect(home, TRACKER, grace_seconds=0)
    assert (home.store / "training" / rare["training"]).is_dir()
    assert (home.reports / "run1").is_dir()


def test_what_an_adapter_that_is_gone_leaves_goes_once_its_records_do(
    home: Home, versions: dict[tuple[str, str], Registered]
) -> None:
    for number, name in enumerate(("gone", "stays")):
        night(home, name, number)
    age(home, 7 * 86_400)
    assert not [it for it in plan(home, TRACKER).goes if it.kind == "output"]
    shutil.rmtree(home.runs / "gone")
    goes = {it.path.name for it in collect(home, TRACKER).goes if it.kind == "output"}
    assert len(goes) == len(STAGES)
    assert all("gone" in it for it in goes)


@pytest.mark.parametrize("known_by", ["runs", "an alias"])
def test_the_rows_that_a_named_start_replays_stay_as_long_as_something_starts_there(
    home: Home, versions: dict[tuple[str, str], Registered], known_by: str
) -> None:
    start = night(home, "a", 0, version="7")
    versions["a", "7"] = Registered((), "run0")
    uri = "models:/a/7"
    if known_by == "an alias":
        # Its newest runs failed before they knew what to start from.
        versions["a", "8"] = Registered(("champion",), "run1", started_from=uri)
    for number in range(1, 8):
        night(home, "a", number, start=uri if known_by == "runs" else None)
    collect(home, TRACKER, grace_seconds=0)
    kept = {stage for stage in STAGES if (home.store / stage / start[stage]).is_dir()}
    assert kept == {"dataset", "evaluation", "registration"}
    versions.pop(("a", "8"), None)
    for number in range(8, 14):
        night(home, "a", number)
    collect(home, TRACKER, grace_seconds=0)
    assert not (home.store / "dataset" / start["dataset"]).exists()


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
    # Nobody goes back to the data of older nights.
    assert [folder.is_dir() for folder in crashed] == [False] * 5 + [True] * 2


def test_fifty_nights_that_fail_on_new_data_each_leave_as_much_as_those_that_end_well(
    home: Home, versions: dict[tuple[str, str], Registered], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, most = 200_000_000, 0
    monkeypatch.setattr(collecting, "_free_gb", lambda it: (disk - size_of(it.root)) / 1e9)
    for number in range(50):
        # The adapter's turn is taken by then, as in a run.
        with adapter_turn(home, "a", run="tonight"):
            collecting.ensure_free(home, TRACKER, 0.05)
            night(home, "a", number, size=2_000_000, checkpoint=4_000_000, outcome="failed")
        if number % 2:
            # It was killed.
            (path, entry), *_ = entries(home)["a"]
            path.write_text(json.dumps({**entry.model_dump(mode="json"), "ended": None}))
        most = max(most, size_of(home.root))
        age(home, 86_400)
    assert most < disk
    collect(home, TRACKER)
    assert len(entries(home)["a"]) == 5
    kept = {"0045", "0046", "0047", "0048", "0049"}
    for stage in ("dataset", "tokenization", "training", "evaluation"):
        assert {path.name[:4] for path in (home.store / stage).glob("[0-9]*")} == kept, stage
    assert {path.name[9:13] for path in home.work.iterdir()} == kept
    # As the message of a disk that is full advises.
    collect(home, TRACKER, keep_runs=1)
    assert {path.name[:4] for path in (home.store / "training").glob("[0-9]*")} == {"0049"}


def test_attempts_at_one_training_count_once_and_the_furthest_stays(
    home: Home, versions: dict[tuple[str, str], Registered]
) -> None:
    keys = night(home, "a", 1, outcome="failed")
    (furthest, entry), *_ = entries(home)["a"]
    for number, stages in enumerate(
        ([], ["dataset", "tokenization"], ["dataset"], ["dataset", "tokenization"], []), start=2
    ):
        told = {**entry.model_dump(mode="json"), "stages": {it: keys[it] for it in stages}}
        furthest.with_name(f"2999-{number}.json").write_text(json.dumps(told))
    collect(home, TRACKER, grace_seconds=0, keep_runs=1)
    assert (home.store / "training" / keys["training"]).is_dir()
    # Of the attempts in between only what tells most is kept, beside the newest.
    assert [path.name for path, _ in entries(home)["a"]] == [
        "2999-6.json",
        "2999-5.json",
        furthest.name,
    ]


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


def test_a_disk_that_takes_no_more_files_refuses_the_run(
    home: Home, versions: dict[tuple[str, str], Registered], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SimpleNamespace(
        f_files=1_000_000, f_favail=7, f_blocks=10**9, f_bfree=10**9, f_bavail=10**9, f_frsize=4096
    )
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    with pytest.raises(StageFailed, match=r"takes 7 more files \(inodes"):
        collecting.ensure_free(home, TRACKER, 0.001)
    # As Btrfs says it, which has no such number.
    disk.f_files = disk.f_favail = 0
    collecting.ensure_free(home, TRACKER, 0.001)
