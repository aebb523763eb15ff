import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from tasks.errors import ServerAway
from tasks.home import Home
from tasks.tracking import Tracker

DIES = """
import os, sys
from pathlib import Path
from tasks.home import Home
from tasks.tracking import Tracker
print(Tracker(Home(Path(sys.argv[1]))).open_run("docs", "killed", tags={}, params={}), flush=True)
os.kill(os.getpid(), 9)
"""


def killed(home: Home) -> str:
    died = subprocess.run(
        [sys.executable, "-c", DIES, str(home.root)], capture_output=True, text=True
    )
    return died.stdout.strip()


def test_the_run_of_a_killed_process_is_closed_by_the_next_one(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    run_id = killed(home)
    tracker = Tracker(home)
    assert tracker.client.get_run(run_id).info.status == "RUNNING"
    living = tracker.open_run("docs", "second", tags={}, params={})
    other = Tracker(home)
    third = other.open_run("docs", "third", tags={}, params={})
    statuses = [tracker.client.get_run(r).info.status for r in (run_id, living, third)]
    assert statuses == ["KILLED", "RUNNING", "RUNNING"]
    tracker.close_run(living, "FINISHED")
    other.close_run(third, "FAILED")
    assert not list(home.locks.glob("mlflow-run-*"))


def test_a_server_that_is_away_costs_no_killed_run_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody but its lease tells of it."""
    home = Home(tmp_path / "home")
    run_id = killed(home)
    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "get_run", refused)
        with pytest.raises(ServerAway):
            Tracker(home).open_run("docs", "second", tags={}, params={})
    tracker = Tracker(home)
    tracker.close_run(tracker.open_run("docs", "third", tags={}, params={}), "FINISHED")
    assert tracker.client.get_run(run_id).info.status == "KILLED"


def lost_answer(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """MLflow makes the run, and is away before it can say so. Returns the ids of the runs made so."""
    create, made = MlflowClient.create_run, []

    def carried_out(*args: Any, **kwargs: Any) -> Any:
        made.append(create(*args, **kwargs).info.run_id)
        raise ConnectionError("Remote end closed connection without response")

    monkeypatch.setattr(MlflowClient, "create_run", carried_out)
    return made


def test_a_run_that_nobody_was_told_of_is_closed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home")
    tracker = Tracker(home)
    living = tracker.open_run("docs", "living", tags={}, params={})
    with monkeypatch.context() as away:
        made = lost_answer(away)
        with pytest.raises(ServerAway):
            tracker.open_run("docs", "lost", tags={}, params={})
        # The look for it meets the same outage: it is not forgotten.
        away.setattr(MlflowClient, "search_runs", refused)
        with pytest.raises(ServerAway):
            tracker.open_run("docs", "lost", tags={}, params={})
    assert tracker.client.get_run(made[0]).info.status == "RUNNING"
    third = tracker.open_run("other", "third", tags={}, params={})
    statuses = [tracker.client.get_run(r).info.status for r in (*made, living, third)]
    assert statuses == ["KILLED", "RUNNING", "RUNNING"]
    assert not list(home.locks.glob("opening-*"))


def test_a_run_that_is_written_is_not_taken_for_one_that_nobody_was_told_of(
    tmp_path: Path,
) -> None:
    """The watchdog may look between the end of its opening and that of the opening's lease."""
    tracker = Tracker(Home(tmp_path / "home"))
    living = tracker.open_run("docs", "living", tags={}, params={})
    opening = tracker.tags_of(living)["loraline.opening"]
    tracker.close_opened(opening)
    assert tracker.client.get_run(living).info.status == "RUNNING"
    del tracker._leases[living]
    tracker.close_opened(opening)
    assert tracker.client.get_run(living).info.status == "KILLED"


def test_a_killed_run_that_was_deleted_for_good_stops_nobody(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.locks.mkdir(parents=True)
    (home.locks / "mlflow-run-0123456789abcdef0123456789abcdef.lock").touch()
    tracker = Tracker(home)
    tracker.close_run(tracker.open_run("docs", "first", tags={}, params={}), "FINISHED")
    assert not list(home.locks.glob("mlflow-run-*"))


@pytest.mark.long
def test_a_killed_run_that_may_not_be_closed_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home = Home(tmp_path / "home")
    run_id = killed(home)
    monkeypatch.setattr(MlflowClient, "set_terminated", forbidden)
    Tracker(home).open_run("docs", "second", tags={}, params={})
    assert f"close the run {run_id}" in caplog.text


def refused(*_: Any, **__: Any) -> Any:
    raise MlflowException("API request failed") from ConnectionError("refused")


def forbidden(*_: Any, **__: Any) -> Any:
    raise MlflowException("not yours", error_code=PERMISSION_DENIED)
