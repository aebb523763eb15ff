"""End a training early, with a checkpoint, when its own speed says that it will cost too much."""

import datetime
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tasks.durations import duration
from tasks.errors import OverBudget
from tasks.training import ranks
from tasks.training.guard_settings import Budget

SPENT = "spent.json"
"""In the working folder, and in each checkpoint."""
WARM_UP_STEPS = 10
"""Steps before a projection is believed; the first, the longest rows' one, is not measured."""
MARGIN = 1.1
"""A projection is a mean over few steps: one that is only this little above the budget stops nothing."""


@dataclass(frozen=True)
class Spent:
    """What earlier attempts of the same training took."""

    wall_seconds: float = 0.0
    gpu_seconds: float = 0.0

    @classmethod
    def read(cls, path: Path) -> "Spent":
        """From the file that `write` wrote; nothing when it is missing or torn."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(float(values["wall_seconds"]), float(values["gpu_seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def write(self, path: Path) -> None:
        """Replaced whole: a kill leaves the one or the other."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(vars(self)), encoding="utf-8")
        temporary.rename(path)

    def and_(self, seconds: float, gpus: int) -> "Spent":
        """With an attempt of so many seconds on so many GPUs."""
        return Spent(self.wall_seconds + seconds, self.gpu_seconds + seconds * gpus)


class BudgetWatch(TrainerCallback):
    """Measures steps, projects the end, and stops the loop when that is too late."""

    def __init__(
        self,
        budget: Budget,
        *,
        gpus: int,
        ledger: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`gpus`: of all processes, 0 on a CPU. `ledger`: file that remembers what attempts took."""
        self._budget = budget
        self._gpus = gpus
        self._ledger = ledger
        self._clock = clock
        self._started = clock()
        self._before = Spent.read(ledger)
        self._first: tuple[int, float] | None = None
        self._verdict = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called after each optimizer step."""
        now, step = self._clock(), state.global_step
        if self._first is None:
            self._first = (step, now)
            return
        left = state.max_steps - step
        first_step, first_end = self._first
        if left <= 0 or self._budget == Budget():
            return
        each = (now - first_end) / (step - first_step)
        verdict = ""
        if state.is_world_process_zero:
            verdict = self._judge(step, left, each, now - self._started)
        # All processes together or none: they wait for each other in every step.
        if ranks.any_of_us(bool(verdict)):
            self._verdict = ranks.told_by_the_first(verdict)
            control.should_save = True
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember the cost beside the checkpoint that it bought."""
        if state.is_world_process_zero:
            self._before.and_(self._clock() - self._started, self._gpus).write(self._ledger)

    def save(self, checkpoint: Path) -> None:
        """Write the cost into a checkpoint: whoever goes on from it elsewhere has nothing but that."""
        self._before.and_(self._clock() - self._started, self._gpus).write(checkpoint / SPENT)

    def take_up(self, checkpoint: Path) -> None:
        """Count what the training took until this checkpoint, where that is more than is known here."""
        there = Spent.read(checkpoint / SPENT)
        if there.wall_seconds > self._before.wall_seconds:
            self._before = there
            if ranks.is_first():
                there.write(self._ledger)

    def refuse_excess(self) -> None:
        """Raises: OverBudget, when the loop was stopped for the budget."""
        if self._verdict:
            raise OverBudget(self._verdict)

    def _judge(self, step: int, left: int, each: float, elapsed: float) -> str:
        """Why to stop, or nothing."""
        first_step = self._first[0] if self._first else 0
        warm = step - first_step >= WARM_UP_STEPS
        now = self._before.and_(elapsed, self._gpus)
        end = now.and_(left * each, self._gpus)
        for name, unit, limit, spent, needed in (
            ("wall_minutes", 60, self._budget.wall_minutes, now.wall_seconds, end.wall_seconds),
            ("gpu_hours", 3600, self._budget.gpu_hours, now.gpu_seconds, end.gpu_seconds),
        ):
            if limit is None or (name == "gpu_hours" and not self._gpus):
                continue
            if spent > limit * unit or (warm and needed > MARGIN * limit * unit):
                return self._words(name, unit, limit, spent, needed, (step, left, each))
        return ""

    def _words(
        self,
        name: str,
        unit: int,
        limit: float,
        spent: float,
        needed: float,
        pace: tuple[int, int, float],
    ) -> str:
        step, left, each = pace
        end = datetime.datetime.now() + datetime.timedelta(seconds=left * each)
        enough = math.ceil(MARGIN * needed / unit * 10) / 10
        what = "of training" if name == "wall_minutes" else "of GPU time"
        return (
            f"training.budget.{name} is {limit:g}, and this training would need {needed / unit:.2g}: "
            f"it was stopped after step {step} of {step + left}, {duration(spent)} {what} in, with a "
            f"checkpoint. At {each:.3g} s a step it would have ended in {duration(left * each)}, on "
            f"{end:%Y-%m-%d at %H:%M}. The ways out: a budget of {enough:g}, with which the same "
            "command goes on from the checkpoint; fewer num_train_epochs or max_steps, shorter or "
            "fewer rows, or a faster machine, with which it starts anew."
        )
