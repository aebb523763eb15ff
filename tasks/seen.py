"""Test rows of today that the champion was trained on: a comparison on them would favour it."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tasks.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SeenPolicy = Literal["refuse", "drop"]
SHOWN_ROWS = 5


def seen_by_champion(
    ids: "npt.NDArray[np.uint64]", champion_rows: Path, policy: SeenPolicy
) -> "npt.NDArray[np.bool_]":
    """Marks the test rows that the champion was trained on.

    `ids` are the test rows' (their 16 hexadecimal digits as a number), `champion_rows` is the
    `train_rows.npy` that the champion's version keeps.

    Raises: DataError when there are such rows and the policy is `refuse`, or when no other is left.
    """
    import numpy as np

    seen = np.isin(ids, np.load(champion_rows, allow_pickle=False))
    count = int(seen.sum())
    if count and (policy == "refuse" or count == len(ids)):
        shown = ", ".join(f"{number:016x}" for number in ids[seen][:SHOWN_ROWS].tolist())
        left = " None is left without them." if count == len(ids) else ""
        raise DataError(
            f"{count:,} of {len(ids):,} test rows were training rows of the champion ({shown}"
            f"{', ...' if count > SHOWN_ROWS else ''}), so a comparison would favour it.{left} Was the "
            "split's salt or the group column changed, or does another recipe feed the same name? Bring "
            "the old split back, evaluate on a dataset.holdout that nobody was trained on, or write "
            "dataset.split.seen_by_champion: drop, which leaves those rows out for all models alike."
        )
    return seen
