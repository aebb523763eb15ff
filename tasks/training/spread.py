"""Over how many processes a training is spread, and where they meet."""

from dataclasses import dataclass
from typing import Literal

Sharding = Literal["none", "fsdp2", "zero2", "zero3"]
"""What of a model each process holds: all of it, or a part."""


@dataclass(frozen=True)
class Spread:
    """The processes of a training as one of its machines sees them."""

    processes: int = 1
    """On each machine: one for each GPU."""
    machines: int = 1
    address: str | None = None
    """Of the machine that runs the flow, as the others reach it."""
    port: int | None = None
    sharding: Sharding = "none"
    machine_rank: int = 0
    """This machine's number; the flow runs on number 0."""

    @property
    def total(self) -> int:
        """Processes on all machines."""
        return self.processes * self.machines
