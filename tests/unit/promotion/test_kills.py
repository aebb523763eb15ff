"""A kill at any step of a promotion or rollback leaves nothing, or what the next call completes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[3]

# The parent imports MLflow once and opens nothing; each attempt is a child of its own that kills itself
# right after the n-th thing that it has changed in the registry, or written to the outbox.
SCRIPT = """
import json, os, shutil, signal, sys
from pathlib import Path
import mlflow, mlflow.store.tracking.sqlalchemy_store, mlflow.store.model_registry.sqlalchemy_store
from tasks.home import Home
from tasks.promotion import notices as notices_module
from tasks.promotion.audit import audit
from tasks.promotion.moving import aliases_of
from tasks.promotion.notices import notices_of
from tasks.promotion.reconciling import reconcile
from tasks.promotion.promoting import promote, roll_back
from tasks.tracking import Tracker

database, folder, action = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
WRITES = ("create_experiment", "create_run", "log_batch", "set_model_version_tag", "set_terminated",
    "set_registered_model_alias", "delete_registered_model_alias", "set_registered_model_tag")
ENVIRON = {"LORALINE_WEBHOOKS": "http://127.0.0.1:9/"}

def attempt(home, kill_after, result):
    tracker = Tracker(home)
    done = 0
    def counted(function):
        def call(*a, **k):
            nonlocal done
            value = function(*a, **k)
            done += 1
            if done == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return value
        return call
    for name in WRITES:
        setattr(tracker.client, name, counted(getattr(tracker.client, name)))
    notices_module.write_json = counted(notices_module.write_json)
    notices = notices_of(home, prefect_api=None, environ=ENVIRON)
    object.__setattr__(notices, "deliver", lambda: 0)
    if action == "promote":
        promote(tracker, "m", "2", reason="better", verify=lambda uri: uri, notices=notices)
    else:
        roll_back(tracker, "m", reason="worse", verify=lambda uri: uri, notices=notices)
    result.write_text(json.dumps(done))

def forked(function, *arguments):
    pid = os.fork()
    if pid == 0:
        try:
            function(*arguments)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def state(home, result):
    tracker = Tracker(home)
    found, now = audit(tracker, "m"), aliases_of(tracker, "m")
    log = tracker.client.get_experiment_by_name("m/promotions")
    runs = tracker.client.search_runs([log.experiment_id]) if log else []
    result.write_text(json.dumps({
        "champion": now.champion, "previous": now.previous,
        "entries": [[e.kind, e.champion_to, e.id] for e in found.entries],
        "problems": [p.told for p in found.problems], "notes": list(found.notes),
        "open": sum(run.info.status == "RUNNING" for run in runs),
        "outbox": sorted(p.name for p in (home.root / "outbox").glob("[0-9]*.json"))}))

def prepare(home):
    tracker = Tracker(home)
    tracker.client.create_registered_model("m")
    for number in range(2):
        tracker.client.create_model_version("m", source="mlflow-artifacts:/x",
            tags={"loraline.gate": "passed", "loraline.adapter_sha256": str(number),
                "loraline.judged_against": str(number) if number else "none"})
    quiet = notices_of(home, prefect_api=None, environ={})
    promote(tracker, "m", "1", reason="first", verify=lambda uri: uri, notices=quiet)
    if action == "rollback":
        promote(tracker, "m", "2", reason="second", verify=lambda uri: uri, notices=quiet)

def settled(home):
    notices = notices_of(home, prefect_api=None, environ=ENVIRON)
    object.__setattr__(notices, "deliver", lambda: 0)
    reconcile(Tracker(home), verify=lambda uri: uri, notices=notices)

def fresh(name, source):
    home = Home(folder / name)
    home.mlflow.mkdir(parents=True)
    shutil.copy(source, home.mlflow / "mlflow.db")
    return home

def read(path):
    return json.loads(path.read_text())

start = fresh("start", database)
assert forked(prepare, start) == 0
ready = start.mlflow / "mlflow.db"
out, told = folder / "out.json", []
whole = fresh("whole", ready)
assert forked(attempt, whole, -1, out) == 0
steps = read(out)
for step in range(1, steps + 1):
    home = fresh(f"kill-{step}", ready)
    assert forked(attempt, home, step, out) == -9, step
    assert forked(state, home, out) == 0
    after = read(out)
    assert forked(settled, home) == 0
    assert forked(state, home, out) == 0
    completed = read(out)
    assert forked(settled, home) == 0
    assert forked(state, home, out) == 0
    again = read(out)
    if not after["entries"][1 if action == "promote" else 2:]:
        # Nothing was begun: the very command repeats it.
        assert forked(attempt, home, -1, out) == 0
        assert forked(state, home, out) == 0
    told.append({"step": step, "after": after, "completed": completed, "again": again, "end": read(out)})
print(json.dumps(told))
"""


@pytest.mark.parametrize(
    ("action", "before", "end"),
    [
        ("promote", ("1", None), ("2", "1")),
        ("rollback", ("2", "1"), ("1", None)),
    ],
)
def test_a_kill_at_any_step_leaves_nothing_or_what_the_next_call_completes(
    action: str,
    before: tuple[str, str | None],
    end: tuple[str, str | None],
    migrated: Path,
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, str(migrated), str(tmp_path), action],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told) >= 10
    entries = {"promote": 1, "rollback": 2}[action]
    begun = 0
    for it in told:
        after, completed = it["after"], it["completed"]
        # Whatever the step: the chain holds, and nobody is champion by half.
        assert after["problems"] == completed["problems"] == [], it
        assert after["champion"] in (before[0], end[0]), it
        if len(after["entries"]) == entries:
            assert (after["champion"], after["previous"]) == before, it
            assert after == completed, it
        else:
            begun += 1
            assert (completed["champion"], completed["previous"]) == end, it
            assert len(completed["entries"]) == entries + 1, it
            assert completed["open"] == 0, it
            assert completed["notes"] == [], it
            # The notice has the entry's id, whichever process wrote it.
            assert [name.split("-", 1)[1] for name in completed["outbox"]] == [
                f"{completed['entries'][-1][2]}.json"
            ], it
        assert it["again"] == completed, it
        assert (it["end"]["champion"], it["end"]["previous"]) == end, it
        assert len(it["end"]["entries"]) == entries + 1, it
    assert begun >= 8
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
