"""The disk of a home in real runs: what a night adds to it for good, and what a full one costs."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.training.checkpoints import MANIFEST

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
DISK = 200_000_000


def taken(folder: Path) -> int:
    """Bytes of its files; one that has two names counts once."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            found[status.st_ino] = status.st_size
    return sum(found.values())


def test_fifty_nights_with_all_that_prefect_and_mlflow_keep_fit_on_200_mb(small: Any) -> None:
    """Each with new rows and a version of its own. From the sixth on a night leaves what it adds for good."""
    folder = small.folder / "recipes"
    text = (folder / "small.yaml").read_text()
    start, end = text.index("  sources:"), text.index("  split:")
    source = "  sources:\n    - {type: jsonl, path: nightly.jsonl}\n"
    recipe = (text[:start] + source + text[end:]).replace("name: small", "name: nightly")
    (folder / "nightly.yaml").write_text(recipe)
    home = small.folder / ".loraline"
    draw = random.Random(0)
    words = [
        f"{a}{b}" for a in ("par", "de", "in", "re", "con", "un") for b in ("cel", "ton", "sy")
    ]
    sizes = []
    for _ in range(9):
        with (folder / "nightly.jsonl").open("a") as file:
            for _ in range(60):
                row = {"prompt": " ".join(draw.choices(words, k=8)) + "?"}
                row["completion"] = " ".join(draw.choices(words, k=16)) + "."
                file.write(json.dumps(row) + "\n")
        done = small.json("run", "recipes/nightly.yaml")
        assert done["exit_code"] == 0, done["stderr"][-3000:]
        assert done["outcome"] != "skipped"
        sizes.append(taken(home))
    kept = sizes[5]
    each = (sizes[-1] - kept) / (len(sizes) - 6)
    assert kept + 45 * each < DISK, [round(it / 1e6, 1) for it in sizes]


def own_disk() -> str:
    """Why no disk of a chosen size can be had here; empty when it can."""
    if shutil.which("unshare") is None:
        return "needs unshare"
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        return "needs the right to make a mount namespace"
    return ""


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
