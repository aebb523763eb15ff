"""What the quickstart promises of its adapter, on the rows that it held out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`loraline run recipes/quickstart.yaml --json` with a state folder of its own."""
    home = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, "-P", "-m", "flows.cli", "run", "recipes/quickstart.yaml", "--json"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "LORALINE_HOME": str(home / ".loraline"), "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_adapter_beats_the_base_with_intervals_that_exclude_zero(
    outcome: dict[str, Any],
) -> None:
    against_base = outcome["differences"]["base"]
    assert outcome["outcome"] == "registered"
    assert against_base["loss"]["high"] < 0
    assert against_base["rougeL"]["low"] > 0
    assert against_base["chrf"]["low"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_beats_both_trivial_answerers_in_rouge_and_chrf(outcome: dict[str, Any]) -> None:
    facts = json.loads((Path(outcome["report"]).parent / "metrics.json").read_text("utf-8"))
    assert sorted(facts["answerers"]) == ["base, first sentence", "name as words"]
    for name, answerer in facts["answerers"].items():
        for metric in ("rougeL", "chrf"):
            assert answerer["differences"][metric]["low"] > 0, (name, metric)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_its_answers_end_by_themselves_with_the_end_of_turn_token(outcome: dict[str, Any]) -> None:
    facts = json.loads((Path(outcome["report"]).parent / "metrics.json").read_text("utf-8"))
    ended = facts["answers"]["ended_with"]["challenger"]["<|end|>"]
    assert ended >= 0.95 * facts["rows"]
