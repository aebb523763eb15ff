"""Test rows of today that the champion was trained on: a comparison on them would favour it."""

import hashlib
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tasks.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SeenPolicy = Literal["refuse", "drop"]
SHOWN_ROWS = 5
KEPT_SECONDS = 7 * 24 * 3600
"""How long `together` keeps a file that nobody asks for again."""


def seen_by_champion(
    ids: "npt.NDArray[np.uint64]",
    champion_rows: Path,
    policy: SeenPolicy,
    whose: str = "the champion",
) -> "npt.NDArray[np.bool_]":
    """Marks the test rows that the champion was trained on.

    `ids` are the test rows' (their 16 hexadecimal digits as a number), `champion_rows` is the
    `train_rows.npy` that the champion's version keeps. `whose` names another version in its place.

    Raises: DataError when there are such rows and the policy is `refuse`, or when no other is left.
    """
    import numpy as np

    seen = np.isin(ids, np.load(champion_rows, allow_pickle=False))
    count = int(seen.sum())
    if count and (policy == "refuse" or count == len(ids)):
        shown = ", ".join(f"{number:016x}" for number in ids[seen][:SHOWN_ROWS].tolist())
        left = " None is left without them." if count == len(ids) else ""
        raise DataError(
            f"{count:,} of {len(ids):,} test rows were training rows of {whose} ({shown}"
            f"{', ...' if count > SHOWN_ROWS else ''}), so a comparison would favour it or what is trained from it.{left} Was the "
            "split's salt or the group column changed, or does another recipe feed the same name? Bring "
            "the old split back, evaluate on a dataset.holdout that nobody was trained on, or write "
            "dataset.split.seen_by_champion: drop, which leaves those rows out for all models alike."
        )
    return seen


def together(files: Sequence[Path], folder: Path) -> Path | None:
    """One file with all row ids of these `.npy` files, sorted; none of no files.

    Kept in `folder` under the digest of the ids.
    """
    import numpy as np

    if len(files) < 2:
        return files[0] if files else None
    ids = np.unique(np.concatenate([np.load(path, allow_pickle=False) for path in files]))
    path = folder / f"{hashlib.sha256(ids.astype('>u8').tobytes()).hexdigest()}.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{uuid.uuid4().hex[:8]}.npy")
        np.save(draft, ids)
        draft.replace(path)
        for other in folder.glob("*.npy"):
            # Each night makes one. Another run that still reads an older one has it open.
            if other != path and time.time() - other.stat().st_mtime > KEPT_SECONDS:
                other.unlink(missing_ok=True)
    return path
