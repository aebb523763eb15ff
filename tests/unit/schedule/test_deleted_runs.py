"""A run that was deleted in MLflow gives its space back, and not while it can still be restored."""

from pathlib import Path

import pytest

from tasks.home import Home
from tasks.retention.deleted_runs import deleted_runs, purge
from tasks.tracking import Tracker


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    home = Home((tmp_path / "home").resolve())
    home.prepare()
    return Tracker(home)


def test_files_of_a_deleted_run_go_and_those_of_others_stay(
    tracker: Tracker, tmp_path: Path
) -> None:
    file = tmp_path / "adapter.bin"
    file.write_text("x" * 1000)
    kept = tracker.open_run("a", "kept", tags={}, params={})
    gone = tracker.open_run("a", "gone", tags={}, params={})
    for run in (kept, gone):
        tracker.log_files(run, [(file, None)])
        tracker.close_run(run, "FINISHED")
    tracker.client.delete_run(gone)
    assert deleted_runs(tracker) == []
    assert deleted_runs(tracker, days=0) == [gone]
    assert purge(tracker, [gone])
    assert deleted_runs(tracker, days=0) == []
    left = [path.parts[-3] for path in tracker.home.mlflow.rglob("adapter.bin")]
    assert left == [kept]


def test_another_ones_mlflow_is_left_to_its_owner(tmp_path: Path) -> None:
    assert deleted_runs(Tracker(Home(tmp_path), uri="http://127.0.0.1:9"), days=0) == []
