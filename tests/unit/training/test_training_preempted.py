"""What others do to a training's process: told to end, stopped, killed; and what a retry makes of it."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from tasks import launch
from tasks.artifacts import Adapter
from tasks.errors import Preempted, StageFailed, WorkerFailed
from tasks.training import task, work
from tasks.training.job import TrainingResult
from tasks.training.settings import TrainingSettings

pytestmark = pytest.mark.long

Train = Callable[..., Adapter]
STEPS = 150


@pytest.fixture
def long(settings: TrainingSettings) -> TrainingSettings:
    """Long enough that an event reaches us well before the end, and saves nothing by itself."""
    values = {
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_steps": 1000,
    }
    return TrainingSettings.model_validate(settings.model_dump() | {"training_config": values})


def processes() -> list[psutil.Process]:
    """The launcher first, then the training process itself."""
    found = [
        process
        for process in psutil.Process().children(recursive=True)
        if "tasks.training.worker" in process.cmdline()
    ]
    return sorted(found, key=lambda process: process.create_time())


def at(step: int, act: Callable[[], Any]) -> Callable[[dict[str, Any]], None]:
    def hear(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == step:
            act()

    return hear


def test_a_process_that_is_told_to_end_is_called_preempted_and_the_next_attempt_goes_on(
    train: Train, long: TrainingSettings
) -> None:
    with pytest.raises(Preempted, match=r"goes on from the checkpoint of step \d+") as preempted:
        train(settings=long, on_event=at(20, lambda: processes()[-1].terminate()))
    said = str(preempted.value)
    assert "SIGTERM" in said
    assert "memory" not in said
    assert preempted.value.exit_code == 75
    kept = int(said.split("checkpoint of step ")[1].split(".")[0])
    assert 20 <= kept < STEPS

    adapter = train(settings=long)
    result = TrainingResult.model_validate_json((adapter.path / "result.json").read_text())
    assert result.resumed_from_step == kept
    assert result.steps == STEPS


def test_a_group_that_is_told_to_end_is_waited_for_while_it_writes(
    train: Train, long: TrainingSettings
) -> None:
    """The launcher dies at once; the process below it has a step and a checkpoint to finish."""
    with pytest.raises(Preempted, match=r"goes on from the checkpoint of step \d+"):
        train(
            settings=long,
            on_event=at(20, lambda: os.killpg(processes()[0].pid, signal.SIGTERM)),
        )


def test_a_process_that_is_killed_without_a_word_is_told_what_would_fit(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(argv: list[str], *, on_event: Any, **_: Any) -> None:
        on_event({"event": "memory", "advice": "Set batch: 2: 1 GB."})
        on_event({"event": "step", "step": 4})
        raise WorkerFailed("Training stopped with exit code 1. Last lines:")

    monkeypatch.setattr(launch, "run", dies)
    with pytest.raises(
        WorkerFailed, match=r"after step 4: .* lack of memory\. Set batch: 2: 1 GB\."
    ):
        train()


def test_a_training_that_is_stopped_for_its_time_is_not_called_preempted(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs_out(argv: list[str], *, on_event: Any, **_: Any) -> None:
        on_event({"event": "interrupted", "step": 9})
        failure = WorkerFailed("Training ran longer than 60 s. Last lines:")
        failure.reason = "timed out"
        raise failure

    monkeypatch.setattr(launch, "run", runs_out)
    with pytest.raises(WorkerFailed, match="checkpoint of step 9") as failed:
        train()
    assert not isinstance(failed.value, Preempted)
    assert "training.timeout_minutes" in str(failed.value)


HANGS = """
import sys, threading, time
sys.path.insert(0, {folder!r})
loaded = threading.Event()
def live():
    while not loaded.wait(0.5):
        print('{{"event": "alive", "step": 0}}', flush=True)
threading.Thread(target=live, daemon=True).start()
from tasks.training import trainer, worker
from tasks.worker import main
from tasks.training.job import TrainingJob
step = trainer.AdapterTrainer.training_step
def hang_here(self, *args, **kwargs):
    while self.state.global_step == 2:
        loaded.set()
        print("a library goes on to warn", flush=True)
        time.sleep(0.5)
    return step(self, *args, **kwargs)
trainer.AdapterTrainer.training_step = hang_here
main(TrainingJob, worker._main)
"""


def test_a_training_that_hangs_is_stopped_and_says_where_it_hung(
    train: Train, long: TrainingSettings, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    code = HANGS.format(folder=str(request.config.rootpath))
    monkeypatch.setattr(
        work, "worker_command", lambda _, job, *__: [sys.executable, "-c", code, str(job)]
    )
    impatient = TrainingSettings.model_validate(long.model_dump() | {"stall_minutes": 0.1})
    monkeypatch.setattr("tasks.launch.GRACE_SECONDS", 1.0)
    with pytest.raises(WorkerFailed, match="gave no sign of life for 6 s") as stalled:
        train(settings=impatient)
    said = str(stalled.value)
    assert "After step 2 nothing was heard" in said
    assert "raise training.stall_minutes" in said
    assert "hang_here" in said.split("Last lines:")[1]
    assert not processes()


def test_only_what_was_preempted_is_retried() -> None:
    class Ended:
        def __init__(self, error: Exception | None) -> None:
            self._error = error

        def result(self) -> None:
            if self._error is not None:
                raise self._error

    for error, retried in (
        (Preempted("told to end"), True),
        (StageFailed("diverged"), False),
        (WorkerFailed("killed"), False),
        (KeyError("x"), False),
        (None, False),
    ):
        assert task.was_preempted(None, None, Ended(error)) is retried, error  # type: ignore[arg-type]
    assert task.train_adapter.retry_condition_fn is task.was_preempted
    assert task.train_adapter.retries == len(task.SECONDS_BEFORE_RETRIES) > 0
