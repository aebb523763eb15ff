"""What was deleted in MLflow gives its space back, and not while it can still be restored."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flows.stack.databases import databases
from flows.stack.postgres import ready_databases
from flows.stack.settings import StackSettings, write_settings
from tasks.home import Home
from tasks.registration.versions import create_version
from tasks.registry import FINGERPRINT_TAG, model_id_of
from tasks.retention import collecting
from tasks.retention.collecting import collect, ensure_free, plan, registered_versions
from tasks.retention.deletions import deleted_runs, deleted_sources
from tasks.retention.purging import is_due, purge
from tasks.stack import Server, write_stack
from tasks.tracking import Tracker

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PAGE = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
DAY = 86_400_000
NOW = dict(os.environ)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home((tmp_path / "home").resolve())
    found.prepare()
    return found


@pytest.fixture
def tracker(home: Home) -> Tracker:
    return Tracker(home)


def sql(tracker: Tracker, statement: str, *values: object) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(tracker.home.mlflow / "mlflow.db")) as connection:
        connection.execute(statement, values)
        connection.commit()


def finished_run(tracker: Tracker, experiment: str, file: Path) -> str:
    run = tracker.open_run(experiment, "some", tags={}, params={})
    tracker.log_files(run, [(file, None)])
    tracker.close_run(run, "FINISHED")
    return run


def files_of(tracker: Tracker) -> set[str]:
    return {path.parts[-3] for path in tracker.home.mlflow.rglob("adapter.bin")}


@pytest.mark.long
def test_what_was_deleted_today_can_be_restored_whatever_its_age_and_what_was_long_ago_is_gone(
    tracker: Tracker, tmp_path: Path
) -> None:
    file = tmp_path / "adapter.bin"
    file.write_text("x" * 1000)
    client = tracker.client
    runs = {name: finished_run(tracker, "a", file) for name in ("kept", "today", "long ago")}
    client.delete_run(runs["today"])
    client.delete_run(runs["long ago"])
    of_experiment = finished_run(tracker, "b", file)
    experiment = client.get_run(of_experiment).info.experiment_id
    client.delete_experiment(experiment)
    models = [client.create_logged_model(tracker.experiment_id("a")).model_id for _ in "12"]
    for model in models:
        client.log_model_artifact(model, str(file))
        client.delete_logged_model(model)
    # All of them ended long ago; two things were deleted then, too.
    old = int(time.time() * 1000) - 40 * DAY
    sql(tracker, "UPDATE runs SET start_time = ?, end_time = ?", old, old)
    sql(tracker, "UPDATE runs SET deleted_time = ? WHERE run_uuid = ?", old, runs["long ago"])
    sql(
        tracker,
        "UPDATE logged_models SET last_updated_timestamp_ms = ? WHERE model_id = ?",
        *(old, models[1]),
    )

    found = plan(tracker.home, tracker)
    assert set(found.deleted_runs) == {runs["today"], runs["long ago"], of_experiment}
    done = collect(tracker.home, tracker, asked=True)
    assert done.deleted_runs == [runs["long ago"]]
    assert files_of(tracker) == {runs["kept"], runs["today"], of_experiment, models[0]}
    command = [sys.executable, "-P", "-m", "mlflow", "runs", "restore", "--run-id", runs["today"]]
    subprocess.run(command, env={**NOW, "MLFLOW_TRACKING_URI": tracker.uri}, check=True)
    assert client.get_run(runs["today"]).info.lifecycle_stage == "active"
    client.restore_experiment(experiment)
    assert client.get_run(of_experiment).info.lifecycle_stage == "active"


@pytest.mark.long
def test_a_deleted_run_of_a_registered_version_stays_and_the_way_out_is_named(
    tracker: Tracker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from tasks.retention.needs import Registered

    file = tmp_path / "adapter.bin"
    file.write_text("x")
    run = finished_run(tracker, "a", file)
    tracker.client.delete_run(run)
    old = int(time.time() * 1000) - 40 * DAY
    sql(tracker, "UPDATE runs SET start_time = ?, end_time = ?, deleted_time = ?", old, old, old)
    versions = {("support", "3"): Registered(("champion",), run)}
    monkeypatch.setattr(collecting, "registered_versions", lambda _: versions)
    assert collect(tracker.home, tracker, asked=True).deleted_runs == []
    assert files_of(tracker) == {run}
    assert f"Version 3 of support came from the MLflow run {run}" in caplog.text
    assert f"MLFLOW_TRACKING_URI={tracker.uri} mlflow runs restore --run-id {run}" in caplog.text
    versions.clear()
    assert collect(tracker.home, tracker, asked=True).deleted_runs == [run]
    assert files_of(tracker) == set()


@pytest.fixture
def champion(tracker: Tracker, tmp_path: Path) -> "ModelVersion":
    """A version with its run and logged model, all made long ago."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter.bin").write_text("x")
    client = tracker.client
    run = tracker.open_run("a", "some", tags={}, params={})
    model = client.create_logged_model(tracker.experiment_id("a"), source_run_id=run)
    client.log_model_artifacts(model.model_id, str(tmp_path / "model"))
    tracker.close_run(run, "FINISHED")
    tags = {FINGERPRINT_TAG: "some"}
    number = create_version(
        tracker, "support", model_id=model.model_id, run_id=run, tags=tags, description=""
    )
    return client.get_model_version("support", number)


def deleted_long_ago(tracker: Tracker) -> None:
    old = int(time.time() * 1000) - 40 * DAY
    sql(tracker, "UPDATE runs SET start_time = ?, end_time = ?", old, old)
    sql(tracker, "UPDATE runs SET deleted_time = ? WHERE deleted_time IS NOT NULL", old)
    sql(tracker, "UPDATE experiments SET last_update_time = ?", old)
    sql(tracker, "UPDATE logged_models SET last_updated_timestamp_ms = ?", old)


@pytest.mark.long
def test_a_deleted_experiment_stays_while_a_version_came_from_it_with_its_run_restored(
    tracker: Tracker, champion: "ModelVersion", caplog: pytest.LogCaptureFixture
) -> None:
    client, run = tracker.client, str(champion.run_id)
    experiment = tracker.experiment_id("a")
    client.delete_experiment(experiment)
    client.restore_run(run)
    deleted_long_ago(tracker)
    assert collect(tracker.home, tracker, asked=True).deleted_runs == []
    assert client.get_run(run).info.lifecycle_stage == "active"
    assert client.get_logged_model(model_id_of(champion))
    command = (
        f"MLFLOW_TRACKING_URI={tracker.uri} mlflow experiments restore --experiment-id {experiment}"
    )
    assert f"Version 1 of support came from the MLflow experiment {experiment}" in caplog.text
    assert f"`{command}` brings it back" in caplog.text
    restore = [sys.executable, "-P", "-m", *command.split()[1:]]
    subprocess.run(restore, env={**NOW, "MLFLOW_TRACKING_URI": tracker.uri}, check=True)
    assert deleted_sources(tracker, registered_versions(tracker)) == []


@pytest.mark.long
def test_a_deleted_logged_model_of_a_version_stays_and_can_be_brought_back(
    tracker: Tracker, champion: "ModelVersion", caplog: pytest.LogCaptureFixture
) -> None:
    client, model = tracker.client, model_id_of(champion)
    client.delete_logged_model(model)
    deleted_long_ago(tracker)
    collect(tracker.home, tracker, asked=True)
    assert list(tracker.home.mlflow.rglob("adapter.bin"))
    assert f"Version 1 of support came from the MLflow logged model {model}" in caplog.text
    (statement,) = re.findall(r"`(UPDATE logged_models [^`]*)`", PAGE)
    sql(tracker, statement.replace("ID", model))
    assert client.get_logged_model(model)
    assert deleted_sources(tracker, registered_versions(tracker)) == []
    client.delete_logged_model(model)
    deleted_long_ago(tracker)
    client.delete_model_version("support", "1")
    collect(tracker.home, tracker, asked=True)
    assert not list(tracker.home.mlflow.rglob("adapter.bin"))


def test_another_ones_mlflow_is_left_to_its_owner(tmp_path: Path) -> None:
    other = Tracker(Home(tmp_path), uri="http://127.0.0.1:9")
    assert deleted_runs(other, days=0) == []
    assert purge(other, NOW, older_than="0d") == []
    assert not is_due(other, ["some"])


def test_a_purge_that_takes_too_long_or_does_not_start_costs_a_warning(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert tracker.client
    slow: Any = subprocess.run

    def asleep(_: object, **how: Any) -> Any:
        said = "print('Run with ID r1 has been permanently deleted.', flush=True)"
        waits = f"import time; {said}; time.sleep(60)"
        return slow([sys.executable, "-c", waits], **how)

    monkeypatch.setattr(subprocess, "run", asleep)
    assert purge(tracker, NOW, timeout_seconds=5) == ["r1"]
    assert "ended after 5 s" in caplog.text
    # Neither does a run that asks for room fail of it.
    monkeypatch.setattr(collecting, "purge", lambda *_: purge(tracker, NOW, timeout_seconds=1))
    free = [9.0, 0.0]
    monkeypatch.setattr(collecting, "_free_gb", lambda _: free.pop())
    ensure_free(tracker.home, tracker, 1.0)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr(subprocess, "run", slow)
    assert purge(tracker, NOW) == []
    assert "does not start" in caplog.text


def test_a_run_purges_at_most_once_a_day_and_a_person_at_once(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracker.client
    assert is_due(tracker, ["some"])
    assert not is_due(tracker, ["some"])
    stamp = tracker.home.mlflow / ".purged"
    for days, runs, due in ((2, ["some"], True), (2, [], False), (8, [], True)):
        then = time.time() - days * 86_400
        os.utime(stamp, (then, then))
        assert is_due(tracker, runs) == due, (days, runs)
    asked: list[object] = []

    def purged(*_: object) -> list[str]:
        asked.append(1)
        return []

    monkeypatch.setattr(collecting, "purge", purged)
    stamp.touch()
    collect(tracker.home, tracker)
    assert not asked
    collect(tracker.home, tracker, asked=True)
    assert asked


@pytest.mark.long
def test_with_postgresql_its_database_is_purged_and_no_file_appears(
    postgres: str,
    home: Home,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = postgres.removesuffix("/postgres")
    ready_databases(server)
    addresses = databases(home, {"LORALINE_POSTGRES": server})
    owner = Tracker(home, uri=addresses.mlflow)
    # Stands for the server before the database, whose address is no database's.
    url = "http://127.0.0.1:9"
    write_stack(home, {"mlflow": Server(url, os.getpid(), supervised=True)})
    monkeypatch.setattr("tasks.tracking._stack_url", lambda _: url)
    client = owner.client
    place = (home.mlflow / "artifacts").as_uri()
    experiment = client.create_experiment("a", artifact_location=place)
    run = client.create_run(experiment).info.run_id
    file = tmp_path / "adapter.bin"
    file.write_text("x")
    client.log_artifact(run, str(file))
    client.set_terminated(run)
    client.delete_run(run)
    commands: list[list[str]] = []
    run_process = subprocess.run

    def seen(command: list[str], **how: Any) -> Any:
        commands.append(command)
        return run_process(command, **how)

    monkeypatch.setattr(subprocess, "run", seen)
    behind = Tracker(home, uri=url)
    assert purge(behind, {**NOW, "LORALINE_LOCK_DATABASE": addresses.lock}) == []
    for environ in ({"LORALINE_POSTGRES": server}, {"LORALINE_LOCK_DATABASE": addresses.lock}):
        assert purge(behind, {**NOW, **environ}, older_than="0d") == [run], caplog.text
        assert not list(home.mlflow.rglob("adapter.bin"))
        run = client.create_run(experiment).info.run_id
        client.delete_run(run)
    assert "geheim" not in str(commands)
    # Locks may be kept in any database: that is none of MLflow's.
    elsewhere = addresses.lock.replace("loraline_mlflow", "postgres")
    assert purge(behind, {**NOW, "LORALINE_LOCK_DATABASE": elsewhere}, older_than="0d") == []
    assert "set LORALINE_POSTGRES" in caplog.text
    assert not (home.mlflow / "mlflow.db").exists()
    # Neither does a file count that is of the time before PostgreSQL.
    (home.mlflow / "mlflow.db").touch()
    write_settings(home, StackSettings(project=tmp_path, database="postgresql"))
    caplog.clear()
    assert purge(behind, NOW, older_than="0d") == []
    assert "set LORALINE_POSTGRES" in caplog.text
