"""`loraline export` as a person types it: real processes, exit codes, one JSON object."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long


def loraline(
    project: Any, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "flows.cli", "export", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "LORALINE_HOME": str(project.home.root), **environment},
    )


def test_a_merge_and_a_push_on_the_command_line(project: Any, hub: Any, tmp_path: Path) -> None:
    output = tmp_path / "merged"
    done = loraline(
        project,
        *("models:/tiny/1", "--format", "merged", "--output", output, "--base", project.base),
        *("--push", "ada/tiny-merged", "--json"),
        HF_ENDPOINT=hub.url,
        HF_TOKEN=hub.token,
        HF_HUB_OFFLINE="0",
        HF_HUB_DISABLE_XET="1",
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert sorted(answer) == ["certificate", "format", "output", "pushed", "sha256s"]
    assert answer["format"] == "merged"
    assert answer["output"] == str(output)
    assert sorted(answer["sha256s"]) == sorted(path.name for path in output.iterdir())
    assert answer["certificate"]["largest_difference"] <= answer["certificate"]["tolerance"]
    assert answer["pushed"]["repository"] == "ada/tiny-merged"
    assert sorted(hub.files) == sorted(answer["sha256s"])
    assert hub.token not in done.stdout + done.stderr


def test_exit_codes_and_words_of_refusals(project: Any, tmp_path: Path) -> None:
    output = tmp_path / "adapter"
    done = loraline(project, "models:/tiny/1", "--format", "peft", "--output", output)
    assert done.returncode == 0, done.stderr
    assert "files." in done.stdout
    again = loraline(project, "models:/tiny/1", "--format", "peft", "--output", output, "--json")
    assert again.returncode == 2
    assert json.loads(again.stdout)["ok"] is False
    assert "is there already" in again.stderr
    assert "Traceback" not in again.stderr
    none = loraline(project, "models:/tiny/1", "--format", "onnx", "--output", tmp_path / "x")
    assert none.returncode == 2
    damaged = loraline(
        project,
        *("models:/tiny/1", "--format", "merged", "--output", tmp_path / "m"),
        *("--base", project.base.parent),
    )
    assert damaged.returncode == 2
    assert "--base DIR" in damaged.stderr
