"""A training that will cost more than it may is stopped early, and goes on when it may cost more."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.errors import OverBudget, StageFailed
from tasks.training import budget, trainer, worker
from tasks.training.budget import BudgetWatch, Spent
from tasks.training.guard_settings import Budget
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.settings import TrainingSettings

pytestmark = pytest.mark.usefixtures("own_signals_and_threads")

MakeJob = Callable[..., TrainingJob]


class Loop:
    """Steps of so many seconds each, of which the watch is told."""

    def __init__(self, ledger: Path, limits: Budget, total: int = 100, gpus: int = 0) -> None:
        self.now = 1000.0
        self.total = total
        self.watch = BudgetWatch(limits, gpus=gpus, ledger=ledger, clock=lambda: self.now)
        self.control = SimpleNamespace(should_save=False, should_training_stop=False)

    def state(self, step: int) -> Any:
        return SimpleNamespace(global_step=step, max_steps=self.total, is_world_process_zero=True)

    def run(self, *seconds: float, begin: int = 0) -> int | None:
        """The step at which the watch stops the loop."""
        for step, each in enumerate(seconds, begin + 1):
            self.now += each
            self.watch.on_step_end(None, self.state(step), self.control)
            if self.control.should_training_stop:
                assert self.control.should_save
                self.watch.on_save(None, self.state(step), self.control)
                return step
        return None

    def verdict(self) -> str:
        with pytest.raises(StageFailed) as failed:
            self.watch.refuse_excess()
        return str(failed.value)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "spent.json"


def test_a_projection_stops_after_the_warm_up_and_says_when_it_would_have_ended(
    ledger: Path,
) -> None:
    # A minute for the longest rows, then 10 s each: 100 steps take 17 min 30 s.
    loop = Loop(ledger, Budget(wall_minutes=10))
    assert loop.run(60, *[10] * 99) == 1 + budget.WARM_UP_STEPS
    said = loop.verdict()
    assert "training.budget.wall_minutes is 10, and this training would need 18" in said
    assert "after step 11 of 100, 2 min 40 s of training in, with a checkpoint" in said
    assert "it would have ended in 14 min 50 s, on 20" in said
    assert "a budget of 19.3, with which the same command goes on" in said


def test_the_slow_first_step_is_not_projected(ledger: Path) -> None:
    assert Loop(ledger, Budget(wall_minutes=10)).run(300, *[1] * 99) is None


def test_a_projection_a_little_above_the_budget_waits_until_it_is_spent(ledger: Path) -> None:
    loop = Loop(ledger, Budget(wall_minutes=10))
    assert loop.run(*[6.3] * 100) == 96
    assert Loop(ledger.with_name("other"), Budget(wall_minutes=10)).run(*[5.9] * 100) is None


def test_a_short_training_may_spend_its_budget_but_no_more(ledger: Path) -> None:
    assert Loop(ledger, Budget(wall_minutes=1), total=5).run(10, 30, 30, 30) == 3


def test_gpu_hours_count_every_gpu_and_no_processor(ledger: Path) -> None:
    limits = Budget(gpu_hours=1)
    # 100 steps of a minute on four GPUs: 6.7 hours.
    loop = Loop(ledger, limits, gpus=4)
    assert loop.run(*[60] * 100) == 11
    assert "training.budget.gpu_hours is 1, and this training would need 6.7" in loop.verdict()
    assert Loop(ledger.with_name("one"), limits, gpus=1).run(*[20] * 100) is None
    assert Loop(ledger.with_name("cpu"), limits, gpus=0).run(*[600] * 100) is None


def test_what_earlier_attempts_took_counts_and_a_torn_ledger_does_not_stop_a_training(
    ledger: Path,
) -> None:
    first = Loop(ledger, Budget())
    assert first.run(*[10] * 30) is None
    first.watch.on_save(None, first.state(30), first.control)
    assert Spent.read(ledger) == Spent(300, 0)
    # The other 70 take 700 s: alone within 15 minutes, and with the 300 s before them not.
    second = Loop(ledger, Budget(wall_minutes=15))
    assert second.run(*[10] * 70, begin=30) == 30 + 1 + budget.WARM_UP_STEPS
    ledger.write_text('{"wall_sec')
    assert Spent.read(ledger) == Spent()


def test_the_last_step_is_never_stopped(ledger: Path) -> None:
    assert Loop(ledger, Budget(wall_minutes=1), total=2).run(10, 3000) is None


def test_budget_and_guards_do_not_decide_the_adapter() -> None:
    plain = TrainingSettings()
    limited = TrainingSettings.model_validate(
        {"budget": {"wall_minutes": 1}, "guards": {"untrained_base": "allow", "preflight": False}}
    )
    assert plain.content() == limited.content()


@pytest.mark.parametrize("value", [0, -1])
def test_a_budget_of_nothing_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        Budget(wall_minutes=value)


@pytest.mark.long
def test_a_stopped_training_registers_nothing_and_goes_on_with_a_larger_budget(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the real loop: each of 14 steps seems to take a minute."""
    monkeypatch.setattr(budget, "WARM_UP_STEPS", 3)
    real, passed = budget.time.monotonic, [0.0]
    step = trainer.AdapterTrainer.training_step

    def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
        passed[0] += 60.0
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trainer.AdapterTrainer, "training_step", slow)
    watch = worker.BudgetWatch
    monkeypatch.setattr(
        worker, "BudgetWatch", lambda *a, **k: watch(*a, **k, clock=lambda: real() + passed[0])
    )
    values = {"training": {"save_steps": 100}}
    task = make_job(tmp_path / "limited", **values, budget=Budget(wall_minutes=8))
    # Told apart from other failures, for who is to be told of it.
    with pytest.raises(OverBudget, match="stopped after step 4 of 14"):
        worker.train(task)
    assert not task.result.exists()
    assert [c.name for c in task.checkpoints.glob("checkpoint-*")] == ["checkpoint-4"]
    spent = json.loads((task.working / "spent.json").read_text())["wall_seconds"]
    assert 240 <= spent < 500

    worker.train(make_job(tmp_path / "limited", **values, budget=Budget(wall_minutes=800)))
    went_on = TrainingResult.model_validate_json(task.result.read_text())
    assert went_on.resumed_from_step == 4
    plain = make_job(tmp_path / "plain", **values)
    worker.train(plain)
    uninterrupted = TrainingResult.model_validate_json(plain.result.read_text())
    assert went_on.adapter_sha256 == uninterrupted.adapter_sha256
