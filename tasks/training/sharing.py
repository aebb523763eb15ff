"""How the rows of an optimizer step are shared out among processes, so that their number changes nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any, Protocol

from tasks.errors import UserError

NOTHING: dict[str, list[int]] = {
    "input_ids": [0, 0],
    "labels": [-100, -100],
    "seq_lengths": [2],
}
"""A row without loss, for a process that the last rows of an epoch do not reach: all must take part in
the exchange of gradients."""


@dataclass(frozen=True)
class Share:
    """One process's part in every optimizer step.

    The recipe's batch and accumulation say how many rows an optimizer step reads, by however many
    processes: the learning rate keeps its meaning when a GPU is added. Micro-batches are dealt out
    whole to `teams` of processes as far as they go round; the processes of a team divide each between them.
    """

    batch: int
    """Rows of a micro-batch as the recipe says."""
    accumulation: int
    """Micro-batches of an optimizer step as the recipe says."""
    processes: int = 1
    rank: int = 0

    @property
    def teams(self) -> int:
        """How many micro-batches are computed at the same time."""
        return gcd(self.accumulation, self.processes)

    @property
    def team_size(self) -> int:
        """Processes that divide one micro-batch between them."""
        return self.processes // self.teams

    @property
    def own_batch(self) -> int:
        """Rows of a micro-batch on one process, at most."""
        return -(-self.batch // self.team_size)

    @property
    def own_accumulation(self) -> int:
        """Micro-batches of an optimizer step on one process."""
        return self.accumulation // self.teams

    def refuse_idle(self) -> None:
        """Raises: UserError when an optimizer step has too few rows to go round."""
        if self.team_size <= self.batch:
            return
        raise UserError(
            f"training.processes times training.machines is {self.processes}, but an optimizer step "
            f"reads {self.batch} x {self.accumulation} rows (per_device_train_batch_size x "
            "gradient_accumulation_steps in training.training_config, divided among the processes): "
            "some would have nothing to do. Raise one of the two, or lower training.processes."
        )

    def micro_batches(self, rows: list[int], together: int) -> list[list[int]]:
        """This process's rows of one epoch, in micro-batches; `together` of them are computed as one.

        Every process has as many, some of them empty where the epoch's last rows do not go round.
        """
        team, place = divmod(self.rank, self.team_size)
        step = self.batch * self.accumulation
        shares: list[list[int]] = []
        for start in range(0, len(rows), step):
            end = min(start + step, len(rows))
            groups = [rows[at : min(at + self.batch, end)] for at in range(start, end, self.batch)]
            rounds = -(-len(groups) // self.teams)
            own = [group[place :: self.team_size] for group in groups[team :: self.teams]]
            own += [[] for _ in range(rounds - len(own))]
            for at in range(0, rounds, together):
                shares.append([row for group in own[at : at + together] for row in group])
        return shares


class Order(Protocol):
    """A sampler of all rows."""

    def __iter__(self) -> Iterator[int]: ...
    def __len__(self) -> int: ...


class SharedOrder:
    """A batch sampler that yields one process's micro-batches; a row that is none has the index -1."""

    def __init__(self, order: Order, share: Share, together: int, *, drop_last: bool) -> None:
        self._order = order
        self._share = share
        self._together = together
        self._drop_last = drop_last

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) that the next iteration reads."""
        if (choose := getattr(self._order, "set_epoch", None)) is not None:
            choose(epoch)

    def __len__(self) -> int:
        return len(self._batches(range(len(self._order))))

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches(self._order):
            yield batch or [-1]

    def _batches(self, order: Iterable[int]) -> list[list[int]]:
        rows = list(order)
        if self._drop_last:
            del rows[len(rows) // self._share.batch * self._share.batch :]
        return self._share.micro_batches(rows, self._together)


class RowsOrNothing:
    """The rows, and at -1 the row without loss."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: int) -> Any:
        if at >= 0:
            return self._rows[at]
        return {name: NOTHING[name] for name in self._rows.column_names}
