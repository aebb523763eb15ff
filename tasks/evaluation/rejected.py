"""The worse answers of the test rows that are preference pairs: how likely a model finds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from tasks.evaluation.answering import NO_LOSS, measure

COLUMN = "rejected_ids"


@dataclass(frozen=True)
class Rejected:
    """Rows of the table that have a worse answer; the others have None in their places."""

    rows: list[int]
    """Which of the table's rows these are."""
    input_ids: list[list[int]]
    """Prompt and worse answer."""
    labels: list[list[int]]
    """The worse answer's tokens, with the one that ends its turn."""
    count: int
    """Rows of the table."""

    @classmethod
    def of(cls, table: Mapping[str, Sequence[Any]]) -> Self | None:
        """From `input_ids`, `prompt_length` and `rejected_ids`; None where no row is a pair."""
        rows: list[int] = []
        input_ids: list[list[int]] = []
        labels: list[list[int]] = []
        for row, worse in enumerate(table.get(COLUMN, ())):
            if worse is not None:
                prompt = table["input_ids"][row][: table["prompt_length"][row]]
                rows.append(row)
                input_ids.append([*prompt, *worse])
                labels.append([NO_LOSS] * len(prompt) + list(worse))
        return cls(rows, input_ids, labels, len(table["input_ids"])) if rows else None

    @property
    def tokens(self) -> list[int | None]:
        """For each row of the table the tokens of its worse answer."""
        counts = [sum(label != NO_LOSS for label in one[1:]) for one in self.labels]
        return self._spread(counts)

    def measure(self, model: Any, batch_size: int, padding: int, name: str) -> list[float | None]:
        """For each row of the table -log p of its worse answer (nats, summed over its tokens)."""
        nll, _ = measure(model, self.input_ids, self.labels, batch_size, padding, name)
        return self._spread(nll)

    def _spread(self, values: Sequence[Any]) -> list[Any]:
        spread: list[Any] = [None] * self.count
        for row, value in zip(self.rows, values, strict=True):
            spread[row] = value
        return spread
