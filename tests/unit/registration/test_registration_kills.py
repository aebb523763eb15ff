"""Eight processes that register one adapter, four of them killed at any step, give exactly one version."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]

# The parent imports MLflow once and opens nothing; every registration is a child of its own. The fresh
# process that loads the model is left out: it writes nothing.
SCRIPT = """
import json, os, shutil, signal, sys
from pathlib import Path
import mlflow, mlflow.pyfunc, mlflow.models, pandas
import mlflow.store.tracking.sqlalchemy_store, mlflow.store.model_registry.sqlalchemy_store
from tasks.artifacts import Adapter, Dataset, Report, Tokens
from tasks.base import Base
from tasks.home import Home
from tasks.registration import work
from tasks.registration.job import Verification
from tasks.registration.provenance import Provenance
from tasks.registration.settings import RegistrationSettings
from tasks.files import file_sha256
from tasks.store import Store
from tasks.tracking import Tracker

job, folder, together = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), int(sys.argv[3])
WRITES = ("create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs",
    "log_batch", "create_registered_model", "create_model_version", "set_model_version_tag",
    "update_model_version", "set_registered_model_alias")
work.verify_version = lambda *_, **__: Verification(rows=1, positions=4, dtype="float32",
    largest_difference=0.0, tolerance=1e-4, adapter_effect=1.0, answer="", finish_reason="stop", seconds=0.0)

def register(home, kill_after, half_an_upload):
    tracker = Tracker(home)
    run = tracker.open_run("tiny", "parallel", tags={}, params={})
    done = 0
    def counted(name, function):
        def call(*a, **k):
            nonlocal done
            if name == "log_model_artifacts" and half_an_upload:
                part = Path(a[1]) / "artifacts" / "adapter"
                tracker.client.log_model_artifact(a[0], str(part / "adapter_config.json"), "artifacts/adapter")
                os.kill(os.getpid(), signal.SIGKILL)
            value = function(*a, **k)
            done += 1
            if done == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return value
        return call
    for name in WRITES:
        setattr(tracker.client, name, counted(name, getattr(tracker.client, name)))
    work.register_adapter(
        Store(home.store), RegistrationSettings(), tracker=tracker, name="tiny", made=Provenance(
        dataset=Dataset(**job["dataset"]), tokens=Tokens(**job["tokens"]),
        adapter=Adapter(**job["adapter"]), report=Report(**job["report"]),
        base=Base(**{**job["base"], "path": Path(job["base"]["path"])}),
        recipe_path=Path(job["recipe"]), recipe_text="name: tiny", recipe_digest="d",
        run_id=run, prefect_flow_run_id=None), max_tokens=6)
    return done

def started(function, *arguments):
    pid = os.fork()
    if pid:
        return pid
    try:
        function(*arguments)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def look(home, result):
    tracker = Tracker(home)
    found = tracker.client.search_model_versions("name = 'tiny'")
    versions = []
    for version in found:
        model = tracker.client.get_logged_model(str(version.source).removeprefix("models:/"))
        place = Path(model.artifact_location.removeprefix("file://")) / "artifacts" / "adapter"
        versions.append({"version": str(version.version), "status": version.status,
            "model": str(model.status), "sha": file_sha256(place / "adapter_model.safetensors"),
            "tag": version.tags["loraline.adapter_sha256"]})
    aliases = {k: str(v) for k, v in tracker.client.get_registered_model("tiny").aliases.items()}
    result.write_text(json.dumps({"versions": versions, "aliases": aliases,
        "work": [p.name for p in home.work.iterdir()] if home.work.is_dir() else []}))

def fresh(name):
    home = Home(folder / name)
    home.mlflow.mkdir(parents=True)
    shutil.copy(job["database"], home.mlflow / "mlflow.db")
    return home

def count(home, result):
    result.write_text(json.dumps(register(home, -1, False)))

out, told = folder / "out.json", []
assert ended(started(count, fresh("whole"), out)) == 0
steps = json.loads(out.read_text())
for step in range(0, steps + 1):
    home = fresh(f"kill-{step}")
    # Step 0: in the middle of the upload.
    # One dies there for certain, before the others come; of these some die, too, if they get so far.
    codes = [ended(started(register, home, step or -1, step == 0))]
    pids = [started(register, home, step or -1, step == 0) for _ in range(together // 2 - 1)]
    pids += [started(register, home, -1, False) for _ in range(together - together // 2)]
    codes += [ended(pid) for pid in pids]
    assert ended(started(look, home, out)) == 0
    told.append({"step": step, "codes": codes, **json.loads(out.read_text())})
print(json.dumps(told))
"""


@pytest.mark.slow
def test_eight_processes_and_a_kill_at_every_step_give_exactly_one_version(
    own_trained: Any, migrated_database: Path, tmp_path: Path
) -> None:
    base = own_trained.base
    job = tmp_path / "job.json"
    job.write_text(
        json.dumps(
            {
                "database": str(migrated_database),
                "recipe": str(own_trained.recipe),
                "base": {**base.__dict__, "path": str(base.path)},
                **{
                    name: getattr(own_trained, name).model_dump(mode="json")
                    for name in ("dataset", "tokens", "adapter", "report")
                },
            }
        )
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, str(job), str(tmp_path), "8"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told) >= 8
    for it in told:
        # Those that were not to be killed got through, whatever the others left behind.
        assert it["codes"][4:] == [0] * 4, (it, done.stderr[-3000:])
        (version,) = it["versions"]
        assert (version["status"], version["model"]) == ("READY", "READY"), it
        assert version["sha"] == version["tag"] == own_trained.adapter.sha256, it
        assert it["aliases"] == {"challenger": version["version"]}, it
        # Every step was really one at which somebody died.
        assert it["codes"][0] == -9, it
