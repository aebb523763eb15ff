"""What is allowed and yet seldom meant: said while there is time to stop, with the ways out."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tasks.dataset.cleaning.found import FORM_ROWS
from tasks.dataset.fates import TEST, TRAIN, Fates
from tasks.dataset.settings import SplitSettings
from tasks.dataset.spool import Spool
from tasks.dataset.steps import CONTAMINATED, NEAR_DUPLICATE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LARGE_GROUP_ROWS = 20
"""A group of fewer rows is a long conversation or a document, and no accident."""
TIMES_THE_TEST_SHARE = 2
LARGE_TEST_GROUPS = 20
"""So few may be on the test side by chance."""
MANY_CONTAMINATED = 0.1
"""Leaks are a few rows in a hundred; more than one in ten are a form that rows have in common."""
MANY_OVER_WEIGHT = 0.5
NAMED_ROWS = 3
FEW_TESTED = 10
ENOUGH_ROWS = 100
"""Of fewer rows in all, a few test rows are no surprise."""
AHEAD = timedelta(days=1)
"""No zone is farther from UTC, for which times without one are taken."""


def of_large_test_side(
    spool: Spool, fates: Fates, frozen: "npt.NDArray[np.bool_]", settings: SplitSettings
) -> list[str]:
    """A test side far larger than asked for: near copies of test rows leave training one by one."""
    import numpy as np

    if settings.by_time or settings.test == 0:
        return []
    kept = fates.kept
    kept = kept[~frozen[kept]]
    groups = spool.column("group")
    tested = len(np.unique(groups[kept[fates.codes[kept] == TEST]]))
    count = len(np.unique(groups[kept]))
    if tested <= max(LARGE_TEST_GROUPS, TIMES_THE_TEST_SHARE * settings.test * count):
        return []
    near = sum(fates.reason(position) == NEAR_DUPLICATE for position in fates.details)
    told = (
        f" {near:,} rows went as near duplicates: of a cluster of near copies that has one on the test "
        "side, every training row goes and every test row stays, so clusters gather there."
        if near
        else ""
    )
    return [
        f"{tested:,} of {count:,} groups of rows are on the test side ({tested / count:.0%}), where "
        f"dataset.split.test asks for {settings.test:.0%}.{told} Name the column that says which rows are "
        "variations of one as dataset.sources[].group: they then share a side, and one of them is "
        "trained. A lower dataset.split.test helps as well."
    ]


def of_few_test_rows(fates: Fates) -> list[str]:
    """So few test rows that a comparison of models says little."""
    tested, kept = int((fates.codes == TEST).sum()), len(fates.kept)
    if tested >= FEW_TESTED or kept < ENOUGH_ROWS:
        return []
    return [
        f"Only {tested:,} of {kept:,} rows are test rows: what they say of a model is mostly chance. Change "
        "dataset.split (test, after, newest_days), or evaluate a dataset.holdout as well."
    ]


def of_the_future(spool: Spool, settings: SplitSettings, now: datetime) -> list[str]:
    """The newest rows are dated later than today, and `newest_days` counts from them."""
    import numpy as np

    if not settings.by_time:
        return []
    times = spool.column("time")
    late = np.flatnonzero(times > (now + AHEAD).timestamp())
    if not len(late):
        return []
    last = spool.row(int(late[np.argmax(times[late])]))
    counts = (
        "dataset.split.newest_days counts from the newest row. "
        if settings.newest_days is not None
        else ""
    )
    return [
        f"{len(late):,} {'row is' if len(late) == 1 else 'rows are'} dated in the future, the latest at "
        f"{last.time} ({last.source}). {counts}Correct such times, or name another column as "
        "dataset.sources[].time."
    ]


def of_large_groups(
    spool: Spool, fates: Fates, frozen: "npt.NDArray[np.bool_]", settings: SplitSettings
) -> list[str]:
    """A group far larger than the test side should be decides alone how large each side is."""
    import numpy as np

    if settings.by_time or settings.test == 0:
        return []
    kept = fates.kept
    kept = kept[~frozen[kept]]
    groups, firsts, sizes = np.unique(
        spool.column("group")[kept], return_index=True, return_counts=True
    )
    limit = max(LARGE_GROUP_ROWS, TIMES_THE_TEST_SHARE * settings.test * len(kept))
    large = np.flatnonzero(sizes > limit)
    if not len(large):
        return []
    largest = int(large[np.argmax(sizes[large])])
    row = spool.row(int(kept[firsts[largest]]))
    tested = bool(fates.codes[kept[firsts[largest]]] == TEST)
    others = f", and {len(large) - 1:,} more groups are as large as that" if len(large) > 1 else ""
    return [
        f"{sizes[largest]:,} of {len(kept):,} rows ({sizes[largest] / len(kept):.0%}) are one group "
        f"({row.group!r}, for example {row.source}), more than the share of dataset.split.test "
        f"({settings.test:.0%}){others}. A group is never divided: this one is on the "
        f"{'test' if tested else 'training'} side as a whole, and {len(groups):,} groups are all that "
        "the split can choose from. Without dataset.sources[].group, rows that begin with the same "
        "prompt are one group: name a column that tells them apart."
    ]


def of_contamination(fates: Fates, *, trained: int) -> list[str]:
    """Decontamination that takes a large part of `trained` rows has found a form, not a leak."""
    left = int((fates.codes == TRAIN).sum())
    gone = trained - left
    if gone <= MANY_CONTAMINATED * trained:
        return []
    return [
        f"Decontamination left out {gone:,} of {trained:,} training rows ({gone / trained:.0%}); "
        f"removed.jsonl lists them as {CONTAMINATED!r}, each with the evaluation row. Look at some "
        "pairs. Rows of one form: raise dataset.cleaning.contamination.similarity (or ngram_share), "
        "or set contamination to null. Variations of one row: name the column that says which "
        "belong together as dataset.sources[].group. Real copies: nothing is to be done."
    ]


def of_resembled(spool: Spool, fates: Fates, positions: Sequence[int]) -> list[str]:
    """Evaluation rows that so many training rows are like that they may be a form, or leaked."""
    if not positions:
        return []
    tested = int((fates.codes == TEST).sum())
    named = ", ".join(
        f"{spool.name(position)} ({spool.row(position).source})"
        for position in positions[:NAMED_ROWS]
    )
    more = len(positions) - NAMED_ROWS
    return [
        f"{len(positions):,} of {tested:,} evaluation rows are each like more than {FORM_ROWS} training "
        f"rows, which stay: {named}{f' and {more:,} more' if more > 0 else ''} "
        "(resembled_evaluation_rows of card.json). What they share is an instruction or a form, or they "
        "leaked in many variations: nothing here can tell. Compare some with the training rows. A form "
        "needs nothing. Variations of one row: name the column that says which belong together as "
        "dataset.sources[].group, or take them out; the evaluation would measure memory."
    ]


def of_weights(
    fates: Fates,
    before: "npt.NDArray[np.int64]",
    sources: "npt.NDArray[np.uint16]",
    names: Sequence[str],
) -> list[str]:
    """Weights that leave out most of a source, or name a source that gives no row."""
    found = []
    for number, name in enumerate(names):
        own = before[sources[before] == number]
        kept = int((fates.codes[own] == TRAIN).sum())
        if not len(own):
            found.append(
                f"{name} gives no training row: the weights of the other sources are kept "
                "without it."
            )
        elif len(own) - kept > MANY_OVER_WEIGHT * len(own):
            found.append(
                f"By dataset.sources[].weight {kept:,} of {len(own):,} training rows of {name} are used: "
                "the source that has the fewest rows for its weight sets the measure. Lower that "
                "source's weight, add to it, or take the weights out to train on every row."
            )
    return found
