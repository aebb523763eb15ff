"""A stage that computes for ten minutes, and lets nothing else in its process have a turn, is left alone."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running_stack import Stack, running_stack, until

SPIN_SECONDS = int(os.environ.get("SPIN_SECONDS", "600"))
SPINS = f"""
import sys, time
from pathlib import Path

class Spin:
    def find_spec(self, name, path=None, target=None):
        if name == "tasks.dataset.work" and Path({{flag!r}}).exists():
            until = time.monotonic() + {SPIN_SECONDS}
            while time.monotonic() < until:
                sum(range(100_000_000))

sys.meta_path.insert(0, Spin())
"""
"""Begins when the dataset stage begins: about a second each time in which no other thread gets in."""
pytestmark = [pytest.mark.torture, pytest.mark.timeout(1800)]


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """While this file is there, stages spin."""
    return tmp_path / "spin"


@pytest.fixture
def stack(small: Any, tmp_path: Path, flag: Path) -> Iterator[Stack]:
    (tmp_path / "sitecustomize.py").write_text(SPINS.format(flag=str(flag)))
    with running_stack(small, PYTHONPATH=str(tmp_path)) as found:
        yield found


def test_a_run_whose_stage_spins_for_ten_minutes_ends_well_and_alarms_nobody(
    stack: Stack, flag: Path
) -> None:
    before = {part["name"]: part["restarts"] for part in stack.status()["parts"]}
    flag.touch()
    began = time.monotonic()
    recipe = stack.write_recipe("busy", seed="name: busy\nseed: 11")
    run = stack.start("retrain", {"recipe": str(recipe)})
    until(lambda: stack.state(run) == "RUNNING", 120)
    seen = set()
    while time.monotonic() - began < SPIN_SECONDS:
        seen.add(stack.state(run))
        time.sleep(10)
    flag.unlink()
    state = stack.end_of(run, 600)
    assert state["type"] == "COMPLETED", state
    assert seen == {"RUNNING"}
    ended = stack.run(run)
    assert ended["run_count"] == 1
    assert ended["total_run_time"] >= SPIN_SECONDS
    assert [it["data"] for it in stack.told if it["type"] == "loraline.alert"] == []
    assert {part["name"]: part["restarts"] for part in stack.status()["parts"]} == before
