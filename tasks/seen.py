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
TEST_COPIES = "test_copies.npy"
"""Beside the test rows, of the dataset and of its tokens: `COPY_FIELDS` of those that have copies among
the rows left out of training, and of these copies."""
COPY_FIELDS = [("row", "<u8"), ("copies", "<u8"), ("tested", "?")]
"""A row's id, the number of the set of copies it is in, whether it is a test row."""
SHOWN_ROWS = 5
KEPT_SECONDS = 7 * 24 * 3600
"""How long `together` keeps a file that nobody asks for again."""


def seen_by_champion(
    ids: "npt.NDArray[np.uint64]",
    champion_rows: Path,
    policy: SeenPolicy,
    whose: str = "the champion",
    copies: Path | None = None,
) -> "npt.NDArray[np.bool_]":
    """Marks the test rows that the champion has seen: it was trained on them, or on copies of them.

    `ids` are the test rows' (their 16 hexadecimal digits as a number), `champion_rows` is the
    `train_rows.npy` that the champion's version keeps. `whose` names another version in its place.
    `copies` is the dataset's `TEST_COPIES`, where there is one. Data that grows brings copies of trained
    rows to the test side, so what that explains is marked under either policy and stops no run.

    Raises: DataError when other test rows are among the champion's and the policy is `refuse`, or when
    no test row is left.
    """
    import numpy as np

    trained = np.load(champion_rows, allow_pickle=False)
    own = np.isin(ids, trained)
    copied = _copied(ids, trained, copies)
    seen = own | copied
    refused = own & ~copied if policy == "refuse" else np.zeros_like(own)
    if seen.any() and seen.all():
        refused = seen
    count = int(refused.sum())
    if count:
        shown = ", ".join(f"{number:016x}" for number in ids[refused][:SHOWN_ROWS].tolist())
        were = f"were training rows of {whose}"
        if (refused & ~own).any():
            were += ", or are copies of some"
        if copies is None:
            grown = " Have copies of them come in other groups (dataset.sources[].group)?"
        else:
            # Those are not refused.
            grown = ""
        left = " None is left without them." if count == len(ids) else ""
        raise DataError(
            f"{count:,} of {len(ids):,} test rows {were} ({shown}"
            f"{', ...' if count > SHOWN_ROWS else ''}), so a comparison would favour it or what is "
            f"trained from it.{left}{grown} Was the split's salt or the group column changed, or does another "
            "recipe feed the same name? Bring the old split back, evaluate on a dataset.holdout that "
            "nobody was trained on, or write dataset.split.seen_by_champion: drop, which leaves those "
            "rows out for all models alike."
        )
    return seen


def _copied(
    ids: "npt.NDArray[np.uint64]", trained: "npt.NDArray[np.uint64]", copies: Path | None
) -> "npt.NDArray[np.bool_]":
    """Marks the test rows of which a copy was trained that is left out of training today."""
    import numpy as np

    if copies is None or not copies.is_file():
        return np.zeros(len(ids), dtype=np.bool_)
    found = np.load(copies, allow_pickle=False)
    gone = found[~found["tested"]]
    sets = gone["copies"][np.isin(gone["row"], trained)]
    kept = found[found["tested"]]
    return np.isin(ids, kept["row"][np.isin(kept["copies"], sets)])


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
