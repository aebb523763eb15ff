"""What a recipe may set of the guards that stop a training: `training.guards` and `training.budget`."""

from typing import Literal

from pydantic import Field

from tasks.settings import Settings

A_YEAR_IN_MINUTES = 525_600
"""Longer than any training, and short enough for the clocks of the libraries."""


class Guards(Settings):
    """Checks that can be relaxed; those that are always right have no switch."""

    untrained_base: Literal["refuse", "allow"] = "refuse"
    """`refuse` stops at the first step when the base predicts no better than guessing: its weights
    were not loaded. `allow` trains it all the same, as tests and benchmarks do with random weights."""
    preflight: bool = True
    """Try two steps on the longest rows first and undo them, so that memory that does not suffice
    shows at once. `false` saves those two steps, and lack of memory may show after hours."""


class Budget(Settings):
    """How much a training may cost. Time of earlier attempts that it goes on from counts, waiting does not."""

    wall_minutes: float | None = Field(default=None, gt=0, le=A_YEAR_IN_MINUTES)
    """Stop, with a checkpoint, as soon as the measured speed says that training would take longer.
    Raising it and running again goes on from there. Default: no limit."""
    gpu_hours: float | None = Field(default=None, gt=0, le=10_000_000)
    """The same in hours times GPUs. Without effect on a CPU. Default: no limit."""
