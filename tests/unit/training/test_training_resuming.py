"""Going on from a checkpoint: proved at the first one, refused for another training, never lost to a full disk."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.errors import StageFailed
from tasks.training import checkpoints, disk, method_trainer, worker
from tasks.training.job import TrainingJob, TrainingResult

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("own_signals_and_threads")]

MakeJob = Callable[..., TrainingJob]
SHORT = {"max_steps": 6, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}


@pytest.fixture
def job(tmp_path: Path, make_job: MakeJob) -> MakeJob:
    def make(name: str = "working", **changes: Any) -> TrainingJob:
        return make_job(tmp_path / name, training=SHORT, **changes)

    return make


def train(job: TrainingJob) -> TrainingResult:
    worker.train(job)
    return TrainingResult.model_validate_json(job.result.read_text())


def complete(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("checkpoint-*") if checkpoints.is_complete(p))


@pytest.mark.parametrize("part", ["optimizer", "adapter", "scheduler", "state"])
def test_a_first_checkpoint_that_holds_something_else_stops_the_training(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    real = checkpoints.mark_complete

    def another(checkpoint: Path, inputs: Any = None, made_with: Any = None) -> None:
        """Written wrongly, and declared complete with the wrong bytes."""
        if part == "state":
            path = checkpoint / "trainer_state.json"
            path.write_text(path.read_text().replace('"global_step": 3', '"global_step": 2'))
        elif part == "adapter":
            from safetensors.torch import load_file, save_file

            path = checkpoint / "adapter_model.safetensors"
            weights = load_file(path)
            weights[sorted(weights)[0]] += 1e-6
            save_file(weights, path)
        else:
            path = checkpoint / f"{part}.pt"
            held = torch.load(path, weights_only=True)
            if part == "optimizer":
                held["state"][0]["exp_avg"] += 1e-9
            else:
                held["last_epoch"] += 1
            torch.save(held, path)
        real(checkpoint, inputs, made_with)

    monkeypatch.setattr(checkpoints, "mark_complete", another)
    with pytest.raises(StageFailed, match="cannot be gone on from"):
        worker.train(job())


def test_a_first_checkpoint_that_does_not_load_stops_the_training(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoints.mark_complete

    def truncated(checkpoint: Path, inputs: Any = None, made_with: Any = None) -> None:
        path = checkpoint / "optimizer.pt"
        path.write_bytes(path.read_bytes()[:50])
        real(checkpoint, inputs, made_with)

    monkeypatch.setattr(checkpoints, "mark_complete", truncated)
    with pytest.raises(StageFailed, match="reading it fails with"):
        worker.train(job())


def test_a_checkpoint_of_another_recipe_dataset_or_base_is_refused_with_the_difference(
    job: MakeJob,
) -> None:
    inputs = {
        "seed": 7,
        "tokens": "aa",
        "training_config": {"learning_rate": 0.02, "betas": [1, 2]},
    }
    task = job(inputs=inputs)
    train(task)
    task.result.unlink()
    other = inputs | {"tokens": "bb", "training_config": {"learning_rate": 0.01, "betas": (1, 2)}}
    with pytest.raises(StageFailed, match="belongs to another training") as refused:
        worker.train(task.model_copy(update={"inputs": other}))
    text = str(refused.value)
    assert "tokens was 'aa' and is 'bb'" in text
    assert "training_config.learning_rate was 0.02 and is 0.01" in text
    assert "seed" not in text
    assert "betas" not in text
    # Refused, and not removed: the first recipe may go on.
    assert train(task).resumed_from_step == 6


def test_a_disk_that_fills_up_in_a_checkpoint_loses_no_older_one(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses the write, as a full disk would: the process may write no larger files."""
    expected = train(job("undisturbed")).adapter_sha256
    real = method_trainer.MethodTrainer._save_optimizer_and_scheduler
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(self: Any, folder: str) -> None:
        if self.state.global_step < 6:
            real(self, folder)
            return
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            real(self, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    task = job()
    with monkeypatch.context() as patch:
        patch.setattr(method_trainer.MethodTrainer, "_save_optimizer_and_scheduler", limited)
        with pytest.raises(
            StageFailed, match=r"disk is full: checkpoint-6 .* goes on from the newest"
        ):
            worker.train(task)
    assert complete(task.checkpoints) == ["checkpoint-3"]
    assert [p.name for p in task.checkpoints.iterdir()] == ["checkpoint-3"]
    result = train(task)
    assert result.resumed_from_step == 3
    assert result.adapter_sha256 == expected


def test_a_full_disk_is_recognised_behind_other_errors() -> None:
    def wrapped(cause: BaseException) -> RuntimeError:
        try:
            raise RuntimeError("could not save") from cause
        except RuntimeError as error:
            return error

    assert disk.is_full(OSError(28, "No space left on device"))
    assert disk.is_full(wrapped(OSError(122, "Disk quota exceeded")))
    assert disk.is_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not disk.is_full(wrapped(OSError(13, "Permission denied")))
