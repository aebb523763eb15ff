"""Which evaluation rows have copies among the rows left out of training.

What is trained today is left out tomorrow, when a copy of it arrives in a group of the test side. A
model of today has then seen that test row, under another id or in another group: `tasks.seen` reads
here which rows these are.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.seen import COPY_FIELDS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Members = tuple[npt.NDArray[Any], npt.NDArray[Any]]


class Copies:
    """Sets of rows that say the same: those that were left out, and those that are evaluated."""

    def __init__(self) -> None:
        self._steps: list[tuple[Members, Members]] = []

    def add(self, *, left_out: "Members", tested: "Members") -> None:
        """What one step found: positions of rows, and for each the number of its set."""
        self._steps.append((left_out, tested))

    def save(
        self, path: Path, ids: "npt.NDArray[np.uint64]", on_test: "npt.NDArray[np.bool_]"
    ) -> None:
        """Write the sets with a row that is evaluated in the end: an .npy file of `COPY_FIELDS`, sorted."""
        import numpy as np

        found = [np.zeros(0, dtype=COPY_FIELDS)]
        first = 0
        for (gone, gone_sets), (kept, kept_sets) in self._steps:
            stays = on_test[kept]
            kept, kept_sets = kept[stays], kept_sets[stays]
            both = np.intersect1d(gone_sets, kept_sets)
            for places, sets, tested in ((gone, gone_sets, False), (kept, kept_sets, True)):
                chosen = np.isin(sets, both)
                part = np.zeros(int(chosen.sum()), dtype=COPY_FIELDS)
                part["row"], part["tested"] = ids[places[chosen]], tested
                part["copies"] = first + np.searchsorted(both, sets[chosen])
                found.append(part)
            first += len(both)
        np.save(path, np.unique(np.concatenate(found)), allow_pickle=False)
