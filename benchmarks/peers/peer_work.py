"""What the runners of all peers share: the job, its rows, the clock, the answer. Needs torch alone."""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

NO_LOSS = -100


@dataclass(frozen=True)
class Job:
    """The same work for each peer; `settings` are those that a peer is fastest with."""

    base: Path
    """A Phi-3 as transformers saves it, in bfloat16."""
    rows_file: Path
    folder: Path
    """Empty, for whatever the peer writes."""
    rank: int
    alpha: int
    learning_rate: float
    rows_per_step: int
    threads: int
    settings: dict[str, int]

    def rows(self) -> list[dict[str, list[int]]]:
        """`input_ids` and `labels` of each row, neither shifted nor padded."""
        return [json.loads(line) for line in self.rows_file.read_text().splitlines()]

    def shape(self) -> dict[str, int]:
        """The base's own configuration, as transformers names it."""
        found: dict[str, int] = json.loads((self.base / "config.json").read_text())
        return found

    def accumulation(self, tokens_per_batch: int) -> int:
        """Micro-batches of this many tokens that come nearest to one step's rows."""
        rows = self.rows()
        mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
        return max(1, round(self.rows_per_step * mean / tokens_per_batch))


class Clock:
    """Seconds from the first training forward's beginning to the last optimizer step's end."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0
        self.steps = 0
        self._first = register_module_forward_pre_hook(self._begin)
        self._steps = register_optimizer_step_post_hook(self._step)

    def stop(self) -> None:
        """Let go of torch's hooks, which are those of every module and optimizer."""
        self._first.remove()
        self._steps.remove()

    def _begin(self, module: torch.nn.Module, inputs: Any) -> None:
        # Some peers look at a validation batch first.
        if module.training and torch.is_grad_enabled():
            self.began = time.perf_counter()
            # A hook on every module would slow down what is measured.
            self._first.remove()

    def _step(self, *_: Any) -> None:
        self.ended = time.perf_counter()
        self.steps += 1


@dataclass(frozen=True)
class Trained:
    """What a peer worked on, and what it said about it."""

    tokens: int
    """Real ones, of rows that reached an optimizer step: no padding."""
    answers: int
    """Tokens that carried loss."""
    losses: Sequence[float]
    """The peer's own figure of each step."""


def main(train: Callable[[Job], Trained], packages: Sequence[str]) -> None:
    """Read the job that the command line names, train, write one JSON line."""
    answer = os.fdopen(os.dup(1), "w")
    # Peers talk on stdout, also from below Python.
    os.dup2(2, 1)
    values = json.loads(Path(sys.argv[1]).read_text())
    paths = {name: Path(values[name]) for name in ("base", "rows_file", "folder")}
    job = Job(**(values | paths))
    torch.set_num_threads(job.threads)
    clock = Clock()
    trained = train(job)
    clock.stop()
    found = {
        "seconds": clock.ended - clock.began,
        "steps": clock.steps,
        "tokens": trained.tokens,
        "answers": trained.answers,
        "losses": list(trained.losses),
        "versions": {name: version(name) for name in packages},
    }
    answer.write(json.dumps(found) + "\n")
    answer.close()
