"""What is allowed and yet seldom meant: said while there is time to stop, with the ways out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.dataset.cleaning.found import FORM_ROWS
from tasks.dataset.fates import TEST, TRAIN, Fates
from tasks.dataset.settings import SplitSettings
from tasks.dataset.spool import Spool
from tasks.dataset.steps import CONTAMINATED

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LARGE_GROUP_ROWS = 20
"""A group of fewer rows is a long conversation or a document, and no accident."""
TIMES_THE_TEST_SHARE = 2
MANY_CONTAMINATED = 0.1
"""Leaks are a few rows in a hundred; more than one in ten are a form that rows have in common."""
MANY_OVER_WEIGHT = 0.5
NAMED_ROWS = 3


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
