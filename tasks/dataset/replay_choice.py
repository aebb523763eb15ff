"""Which rows of an earlier version's dataset may stand among today's training rows, and which of them do."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.dataset.build import SIDES
from tasks.dataset.cleaner import Cleaner
from tasks.dataset.cleaning_settings import CleaningSettings
from tasks.dataset.fates import TEST, TRAIN, Fates
from tasks.dataset.removed import Removed
from tasks.dataset.rows import Row
from tasks.dataset.spool import Spool, fraction, from_line
from tasks.dataset.steps import (
    drop_contaminated,
    drop_duplicates,
    drop_near_duplicates,
    drop_shared_prompts,
    drop_unwanted,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

IN_TEST_GROUP = "in a group of the test rows"
NOT_CHOSEN = "over training.replay.share"
TODAY, TESTED, OLD = TRAIN, TEST, 2
"""Sources of the spool's rows: today's training and test rows, numbered as their fates, and the start's."""


@dataclass
class Chosen:
    """What came of the start's rows."""

    places: "npt.NDArray[np.int64]"
    """Positions of the rows that are replayed, in their order."""
    read: int
    wanted: int
    left_out: dict[str, int]


def spooled(
    scratch: Path, cleaning: CleaningSettings, removed: Removed, today: Path, old: Path
) -> tuple[Spool, int]:
    """Today's rows and the old ones, cleaned as today's were; how many old ones were read."""
    spool, cleaner, read = Spool(scratch / "rows.jsonl", ""), Cleaner(cleaning, removed), 0
    for side, kind in zip(SIDES, (TODAY, TESTED), strict=True):
        for row in _rows(today / f"{side}.jsonl"):
            spool.add(row, kind)
    for row in _rows(old):
        read += 1
        if (cleaned := cleaner(row)) is not None:
            spool.add(cleaned, OLD)
    return spool, read


def _rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as stream:
        for line in stream:
            yield from_line(line)


def choose(
    spool: Spool,
    cleaning: CleaningSettings,
    start_sha256: str,
    share: float,
    read: int,
    removed: dict[str, int],
) -> Chosen:
    """The old rows that no step takes out, as many as the share asks for."""
    import numpy as np

    source, groups = spool.column("source"), spool.column("group")
    old = source == OLD
    fates = Fates(len(spool))
    fates.codes[source == TESTED] = TEST
    # Below 0 are rows that no copy may push out.
    order = np.where(old, spool.column("fraction"), -1.0)
    drop_duplicates(spool, fates, order)
    # Undone for today's rows, which were judged when they were prepared.
    fates.codes[~old] = source[~old]
    if cleaning.near_duplicates is not None:
        drop_near_duplicates(spool, cleaning.near_duplicates, fates, order)
    drop_unwanted(spool, cleaning, fates)
    tested = np.isin(groups, groups[source == TESTED])
    fates.drop(np.flatnonzero(old & tested & (fates.codes == TRAIN)), IN_TEST_GROUP)
    drop_shared_prompts(spool, fates)
    if cleaning.contamination is not None:
        drop_contaminated(spool, cleaning.contamination, fates)
    left = np.flatnonzero(old & (fates.codes == TRAIN))
    wanted = round(share / (1 - share) * int((source == TODAY).sum()))
    # By a hash of row and start: another start replays other rows.
    draws = [fraction(start_sha256, spool.name(int(at))) for at in left]
    places = np.sort(left[np.argsort(draws, kind="stable")[:wanted]])
    reasons = Counter(
        str(fates.reason(int(at))) for at in np.flatnonzero(old & (fates.codes > TEST))
    )
    reasons[NOT_CHOSEN] = len(left) - len(places)
    left_out = removed | {reason: count for reason, count in reasons.items() if count}
    return Chosen(places, read, wanted, left_out)
