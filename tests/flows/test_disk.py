"""The disk of a home in real runs: what a night adds to it for good, and what a full one costs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.training.checkpoints import MANIFEST

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
DISK = 200_000_000


def own_disk() -> str:
    """Why no disk of a chosen size can be had here; empty when it can."""
    if shutil.which("unshare") is None:
        return "needs unshare"
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        return "needs the right to make a mount namespace"
    return ""


NIGHTLY = """\
name: nightly
base: {base}
dataset:
  sources:
    - {{type: jsonl, path: nightly.jsonl}}
  split: {{test: 0.1, max_test_rows: 20}}
tokenization: {{max_length: 256, long_rows: drop}}
training:
  guards: {{untrained_base: allow}}
  peft_config: {{r: 4}}
  training_config: {{max_steps: 2, per_device_train_batch_size: 4}}
evaluation: {{max_new_tokens: 4, bootstrap_samples: 100}}
retention: {{min_free_gb: 0.05}}
promotion: {{policy: automatic}}
"""
NIGHTS = """
mount -t tmpfs -o size="$1" tmpfs "$LORALINE_HOME"
exec "$2" -P "$3" "$4" 50
"""


@pytest.mark.skipif(bool(own_disk()), reason=own_disk() or "it can")
@pytest.mark.timeout(3600)
def test_fifty_nights_with_all_that_prefect_and_mlflow_keep_fit_on_a_disk_of_200_mb(
    fresh: Any, tiny_base: Path, tmp_path: Path
) -> None:
    """Each has new rows and a version of its own; all that the state folder holds lies on the disk."""
    recipe, home = tmp_path / "nightly.yaml", tmp_path / "home"
    recipe.write_text(NIGHTLY.format(base=tiny_base))
    home.mkdir()
    program = str(Path(__file__).resolve().parents[1] / "fifty_nights.py")
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-euc", NIGHTS, "-", str(DISK), sys.executable, program, recipe],
        cwd=tmp_path,
        env=fresh.environment(LORALINE_HOME=str(home), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=3500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *nights, end = (json.loads(it) for it in done.stdout.splitlines() if it.startswith("{"))
    assert [it["outcome"] for it in nights] == ["registered"] * 50
    used = [it["used"] for it in nights]
    assert max(used) < 0.6 * DISK
    # What `loraline gc` answers for alone has stopped growing.
    for name in ("store/dataset", "store/tokenization", "store/training", "cache", "work"):
        assert nights[49]["folders"][name] <= 1.1 * nights[29]["folders"][name] + 8192, name
    # What each night leaves for good, its version and its run in Prefect for 90 days, does not grow.
    assert used[49] - used[29] <= 1.2 * (used[29] - used[9])
    # And goes when a person no longer wants the version.
    for name in ("mlflow", "reports", "store/evaluation", "store/registration"):
        assert end["folders"][name] < nights[19]["folders"][name], name


FULL = """
mount -t tmpfs -o size=300m tmpfs "$LORALINE_HOME"
fill() {
  until ls "$LORALINE_HOME"/work/training-*/checkpoints/checkpoint-10/MANIFEST; do sleep 0.05; done
  cat /dev/zero > "$LORALINE_HOME/somebody-else"
}
fill > "$OUT/filled" 2>&1 &
code=0; loraline run recipes/full.yaml --json > "$OUT/first" 2> "$OUT/first.err" || code=$?
wait
echo "$code" > "$OUT/first.code"
ls -d "$LORALINE_HOME"/work/training-*/checkpoints/* > "$OUT/checkpoints" || true
rm "$LORALINE_HOME/somebody-else"
loraline versions full > "$OUT/versions" 2>&1 || true
code=0; loraline run recipes/full.yaml --json > "$OUT/second" 2> "$OUT/second.err" || code=$?
echo "$code" > "$OUT/second.code"
"""


@pytest.mark.skipif(bool(own_disk()), reason=own_disk() or "it can")
def test_a_disk_that_fills_in_a_training_is_told_and_the_next_run_goes_on(
    fresh: Any, tmp_path: Path
) -> None:
    """All that is written lies on it: checkpoints, and the files of Prefect and of MLflow."""
    text = (fresh.folder / "recipes" / "small.yaml").read_text()
    (fresh.folder / "recipes" / "full.yaml").write_text(
        text.replace("name: small", "name: full")
        .replace("max_steps: 6", "max_steps: 60\n    save_steps: 5")
        .replace("promotion:", "retention: {min_free_gb: 0.05}\npromotion:")
    )
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "loraline").write_text(f'#!/bin/sh\nexec {sys.executable} -P -m flows.cli "$@"\n')
    (programs / "loraline").chmod(0o755)
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-uc", FULL.replace("MANIFEST", MANIFEST)],
        cwd=fresh.folder,
        env=fresh.environment(
            LORALINE_HOME=str(tmp_path / "home"),
            OUT=str(tmp_path),
            PATH=f"{programs}{os.pathsep}{os.environ['PATH']}",
        ),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "first.err").read_text()
    assert "No space left on device" in (tmp_path / "filled").read_text()
    assert int((tmp_path / "first.code").read_text()) != 0
    assert "disk" in told.splitlines()[-1], told[-3000:]
    assert "checkpoint-10" in (tmp_path / "checkpoints").read_text()
    second = (tmp_path / "second.err").read_text()
    assert int((tmp_path / "second.code").read_text()) == 0, second[-3000:]
    assert json.loads((tmp_path / "second").read_text())["outcome"] == "registered"
