import subprocess
import sys
from pathlib import Path

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


def test_the_run_of_a_killed_process_is_closed_by_the_next_one(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    died = subprocess.run(
        [sys.executable, "-c", DIES, str(home.root)], capture_output=True, text=True
    )
    run_id = died.stdout.strip()
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
