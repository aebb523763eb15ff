"""A training goes on with the arithmetic that its checkpoint was computed with, on another machine too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import StageFailed, UserError
from tasks.training import checkpoints, loading, made_with, method_trainer, trainer, worker
from tasks.training.budget import SPENT, Spent
from tasks.training.guard_settings import Budget
from tasks.training.job import TrainingJob, TrainingResult

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_signals_and_threads")]

MakeJob = Callable[..., TrainingJob]


class Killed(BaseException):
    """As a kill: nothing is written any more."""


def train(job: TrainingJob) -> TrainingResult:
    worker.train(job)
    return TrainingResult.model_validate_json(job.result.read_text())


def killed_after_the_first_checkpoint(job: TrainingJob) -> None:
    real = method_trainer.MethodTrainer._save_checkpoint

    def then_die(self: Any, *args: Any) -> None:
        real(self, *args)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method_trainer.MethodTrainer, "_save_checkpoint", then_die)
        with pytest.raises(Killed):
            worker.train(job)


@pytest.mark.parametrize("first", ["avx512_bf16", None])
def test_auto_keeps_the_number_format_of_the_checkpoint_and_says_so(
    job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    first: str | None,
) -> None:
    second = None if first else "avx512_bf16"
    monkeypatch.setattr(loading, "bf16_cpu_flag", lambda *_: first)
    task = job(dtype="auto")
    killed_after_the_first_checkpoint(task)
    capsys.readouterr()
    # Another machine, which would compute otherwise.
    monkeypatch.setattr(loading, "bf16_cpu_flag", lambda *_: second)
    result = train(task)
    assert result.resumed_from_step == 3
    kept = "bfloat16" if first else "float32"
    assert result.dtype == kept
    assert f"Going on in {kept}, as the checkpoint was computed" in capsys.readouterr().out

    monkeypatch.setattr(loading, "bf16_cpu_flag", lambda *_: first)
    assert result.adapter_sha256 == train(job("undisturbed", dtype="auto")).adapter_sha256


def declared(folder: Path, **values: Any) -> Path:
    checkpoint = folder / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text("w")
    checkpoints.mark_complete(checkpoint, made_with=values)
    return checkpoint


def test_a_format_that_this_machine_lacks_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    declared(tmp_path, dtype="float16")
    with pytest.raises(StageFailed, match=r"computed in float16, which this machine does not do"):
        made_with.precision_to_go_on_with("auto", tmp_path, print)
    # What the recipe names is the recipe's own matter.
    assert made_with.precision_to_go_on_with("float32", tmp_path, print).name == "float32"
    with pytest.raises(UserError):
        made_with.precision_to_go_on_with("float16", tmp_path, print)


def test_a_checkpoint_of_another_format_is_never_gone_on_from(tmp_path: Path) -> None:
    checkpoint = declared(tmp_path, dtype="bfloat16")
    with pytest.raises(StageFailed, match=r"was computed in bfloat16, and .* computes in float32"):
        made_with.refuse_other_precision(checkpoint, loading.choose_precision("float32"))
    made_with.refuse_other_precision(checkpoint, loading.choose_precision("bfloat16"))


def test_other_libraries_are_told_and_stop_nothing(
    job: MakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    task = job()
    killed_after_the_first_checkpoint(task)
    [checkpoint] = task.checkpoints.glob("checkpoint-*")
    manifest = json.loads((checkpoint / checkpoints.MANIFEST).read_text())
    assert manifest["made_with"]["versions"] == made_with.versions()
    assert made_with.other_versions(checkpoint) == ""
    manifest["made_with"]["versions"]["torch"] = "1.13.0"
    (checkpoint / checkpoints.MANIFEST).write_text(json.dumps(manifest))
    assert train(task).resumed_from_step == 3
    said = capsys.readouterr().out
    assert f"torch 1.13.0 (now {made_with.versions()['torch']})" in said
    assert "trl " not in said[said.index("written with") :].split(":")[0]


def test_what_a_training_has_cost_goes_with_its_checkpoint_to_another_machine(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the real loop: each of 14 steps seems to take a minute."""
    from tasks.training import budget

    real, passed = budget.time.monotonic, [0.0]
    step = trainer.AdapterTrainer.training_step

    def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
        passed[0] += 60.0
        return step(self, *args, **kwargs)

    watch = worker.BudgetWatch
    monkeypatch.setattr(trainer.AdapterTrainer, "training_step", slow)
    monkeypatch.setattr(
        worker, "BudgetWatch", lambda *a, **k: watch(*a, **k, clock=lambda: real() + passed[0])
    )
    here = job("here")
    killed_after_the_first_checkpoint(here)
    [checkpoint] = here.checkpoints.glob("checkpoint-*")
    # Two more are the trial before the first step.
    assert Spent.read(checkpoint / SPENT).wall_seconds == pytest.approx(300, abs=100)
    there = job("there", budget=Budget(wall_minutes=8))
    there.checkpoints.mkdir(parents=True)
    checkpoint.rename(there.checkpoints / checkpoint.name)
    # Eleven minutes are left, three were spent: within the limit of eight until the fourth one here.
    with pytest.raises(StageFailed, match=r"wall_minutes is 8, .* after step (6|7) of 14"):
        worker.train(there)
