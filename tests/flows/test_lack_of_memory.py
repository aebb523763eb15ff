"""A training whose worker asks for more memory than there is, within a whole run of `retrain`."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import RECIPE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]
RUNS_OUT = """
import sys
sys.path.insert(0, {folder!r})
import torch
from tasks.training import trainer, worker
from tasks.training.job import TrainingJob
from tasks.worker import main
step = trainer.AdapterTrainer.training_step
def greedy(self, *args, **kwargs):
    if self.state.global_step == 3 and self.args.per_device_train_batch_size > 2:
        torch.empty(1 << 50, dtype=torch.uint8)
    return step(self, *args, **kwargs)
trainer.AdapterTrainer.training_step = greedy
main(TrainingJob, worker._main)
"""
"""A training worker to which rows by threes or more are too many from its fourth step on."""


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[tuple[int, int]]:
    """Rows at once and micro-batches a step of each worker that was started."""
    from tasks.training import smaller, work

    code = RUNS_OUT.format(folder=str(request.config.rootpath))
    found: list[tuple[int, int]] = []

    def command(_: str, job: Path, *__: Any) -> list[str]:
        found.append(smaller.rows_at_once(json.loads(job.read_text())["training_config"]))
        return [sys.executable, "-c", code, str(job)]

    monkeypatch.setattr(work, "worker_command", command)
    return found


def retrained(tmp_path: Path, starter: Path, *overrides: str) -> Any:
    """The state in which the run ends."""
    from flows.retrain import retrain

    recipe = tmp_path / "short-of-memory.yaml"
    text = RECIPE.format(base=starter).replace("name: small", "name: short-of-memory")
    recipe.write_text(text)
    return retrain(str(recipe), overrides=[*overrides], return_state=True)


def log_of(state: Any) -> str:
    """What the run's page shows: its lines arrive a moment later than it ends."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    run = state.state_details.flow_run_id
    where = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
    time.sleep(5)
    with get_client(sync_client=True) as client:
        return "\n".join(line.message for line in client.read_logs(where))


def test_a_run_that_may_take_smaller_batches_is_finished_in_batches_of_half_the_size(
    tmp_path: Path, starter: Path, tried: list[tuple[int, int]]
) -> None:
    state = retrained(tmp_path, starter, "training.smaller_batches=true")
    assert tried == [(4, 4), (2, 8)]
    assert state.name == "Completed", state
    assert state.result()["outcome"] == "registered"
    said = log_of(state)
    assert "Memory ran out in step 4 of 6" in said
    assert "Once more with per_device_train_batch_size 2" in said
    assert "Going on from the checkpoint of step 3" in said


def test_a_run_that_may_not_fails_once_and_says_what_would_fit(
    tmp_path: Path, starter: Path, tried: list[tuple[int, int]]
) -> None:
    state = retrained(tmp_path, starter)
    assert tried == [(4, 4)]
    assert state.type == "FAILED"
    assert "Memory ran out in step 4 of 6" in state.message
    assert "By estimate this training needs" in state.message
    assert "With `training.smaller_batches: true`" in state.message
