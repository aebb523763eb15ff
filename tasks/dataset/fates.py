"""What becomes of each row that was read: one byte a row, until the rows are written."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from tasks.dataset.copies import Copies

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TRAIN, TEST = 0, 1
_FIRST_REASON = 2


class Fates:
    """Every row is kept until a step drops it for a reason; the first reason stands."""

    def __init__(self, count: int) -> None:
        import numpy as np

        self.codes = np.zeros(count, dtype=np.uint8)
        """`TRAIN`, `TEST`, or a reason."""
        self.details: dict[int, str] = {}
        """Position -> what a reason refers to, for example the row that it is a copy of."""
        self.copies = Copies()
        """Evaluation rows, and the rows that were left out of training as their copies."""
        self._reasons: list[str] = []

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why rows were left out, in the order of the steps."""
        return tuple(self._reasons)

    @property
    def kept(self) -> "npt.NDArray[np.int64]":
        """Positions of the rows that no step has dropped."""
        import numpy as np

        return np.flatnonzero(self.codes < _FIRST_REASON)

    def drop(
        self, positions: "Iterable[int]", reason: str, details: Mapping[int, str] | None = None
    ) -> None:
        """Leave rows out."""
        import numpy as np

        chosen = np.fromiter(positions, dtype=np.int64)
        if not len(chosen):
            return
        if reason not in self._reasons:
            self._reasons.append(reason)
        self.codes[chosen] = _FIRST_REASON + self._reasons.index(reason)
        self.details.update(details or {})

    def reason(self, position: int) -> str | None:
        """Why the row was left out; None for a kept one."""
        code = int(self.codes[position])
        return None if code < _FIRST_REASON else self._reasons[code - _FIRST_REASON]
