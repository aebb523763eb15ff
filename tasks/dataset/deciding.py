"""What becomes of every row that was read: the steps that compare rows, in their order, and the split."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tasks.dataset.cautions import (
    of_contamination,
    of_few_test_rows,
    of_large_groups,
    of_large_test_side,
    of_resembled,
    of_the_future,
    of_weights,
)
from tasks.dataset.empty_side import (
    refuse_all_contaminated,
    refuse_all_with_tested_prompts,
    refuse_empty_holdout,
    refuse_empty_side,
)
from tasks.dataset.fates import TEST, TRAIN, Fates
from tasks.dataset.reading.opening import Opened
from tasks.dataset.settings import DatasetSettings
from tasks.dataset.split import divide, on_test_side, smallest
from tasks.dataset.spool import Spool
from tasks.dataset.steps import (
    DECONTAMINATION,
    NEAR_DUPLICATES,
    drop_contaminated,
    drop_duplicates,
    drop_near_duplicates,
    drop_shared_prompts,
    drop_unwanted,
)
from tasks.dataset.weights import OVER_WEIGHT, beyond_quotas

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

IN_HOLDOUT_GROUP = "in a group of the holdout"
OVER_SOURCE_LIMIT = "over dataset.sources[].max_rows"

_log = logging.getLogger(__name__)


@dataclass
class Decided:
    """The fate of every row, and what was seen on the way."""

    fates: Fates
    steps: list[tuple[str, int]] = field(default_factory=list)
    """(what was done, rows left after it), in order."""
    holdout_rows: int = 0
    unrecognisable: int = 0
    """Evaluation rows that hold too little text of their own to be found among training rows."""
    resembled: list[str] = field(default_factory=list)
    """Ids of evaluation rows that many training rows are like, which stay."""
    warnings: list[str] = field(default_factory=list)
    """What a person should look at before training, with the ways out."""

    def after(self, step: str) -> None:
        """A step is done."""
        self.steps.append((step, len(self.fates.kept)))

    def warn(self, warnings: Sequence[str]) -> None:
        """Say it now, and keep it for the card."""
        for warning in warnings:
            _log.warning("%s", warning)
        self.warnings += warnings


def decide(
    spool: Spool,
    settings: DatasetSettings,
    sources: Sequence[Opened],
    *,
    salt: str,
    read: int,
    removed: dict[str, int],
) -> Decided:
    """Decide about every row of the spool; rows of source number `len(sources)` are the holdout's.

    `read` rows came from the sources, of which `removed`, by reason, did not reach the spool.

    Raises: DataError when a side is empty, or when rows lack the time that the split needs.
    """
    import numpy as np

    decided = Decided(Fates(len(spool)))
    fates, split, cleaning = decided.fates, settings.split, settings.cleaning
    source, ids, groups = (spool.column(name) for name in ("source", "id", "group"))
    frozen = source == len(sources)
    # A frozen set is whole: nothing below takes a row out of it.
    fates.codes[frozen] = TEST
    decided.holdout_rows = int(frozen.sum())
    if settings.holdout is not None:
        refuse_empty_holdout(decided.holdout_rows, removed)
    fractions = spool.column("fraction").copy()
    on_test = np.zeros(len(spool), dtype=np.bool_)
    on_test[~frozen] = on_test_side(
        split, fractions=fractions[~frozen], times=spool.column("time")[~frozen]
    )
    # Of copies the one on the evaluated side stays, and the holdout's before all others. Below 0 are
    # the rows that no copy may push out, and their hashes order them there as well.
    fractions[on_test] -= 1.0
    fractions[frozen] -= 2.0

    drop_duplicates(spool, fates, fractions)
    decided.after("exact duplicates")
    if cleaning.near_duplicates is not None:
        drop_near_duplicates(spool, cleaning.near_duplicates, fates, fractions)
        decided.after(NEAR_DUPLICATES)
    if cleaning.length is not None or cleaning.language is not None:
        drop_unwanted(spool, cleaning, fates)
        decided.after("length and language")
    if any(opened.max_rows is not None for opened in sources):
        _limit_sources(fates, source, ids, sources)
        decided.after("limits of the sources")
    if frozen.any():
        kept = fates.kept
        fates.drop(kept[np.isin(groups[kept], groups[frozen]) & ~frozen[kept]], IN_HOLDOUT_GROUP)
        decided.after("groups of the holdout")
    _divide(fates, on_test, frozen, settings, ids=ids, groups=groups)
    decided.after("split")
    refuse_empty_side(fates, spool, split, salt=salt, read=read, before=removed)
    decided.warn(of_the_future(spool, split, datetime.now(UTC)))
    # A group that is larger than the side explains it.
    large = of_large_groups(spool, fates, frozen, split)
    decided.warn(large or of_large_test_side(spool, fates, frozen, split))
    decided.warn(of_few_test_rows(fates))

    trained = int((fates.codes == TRAIN).sum())
    resembled = drop_shared_prompts(spool, fates)
    decided.after("prompts of evaluation rows")
    refuse_all_with_tested_prompts(fates, spool, trained=trained)
    if cleaning.contamination is not None:
        trained = int((fates.codes == TRAIN).sum())
        unjudged = drop_contaminated(spool, cleaning.contamination, fates)
        decided.unrecognisable = unjudged.rows
        resembled = sorted({*resembled, *unjudged.resembled})
        decided.after(DECONTAMINATION)
        refuse_all_contaminated(fates, trained=trained)
        decided.warn(of_contamination(fates, trained=trained))
    decided.resembled = [spool.name(position) for position in resembled]
    decided.warn(of_resembled(spool, fates, resembled))
    weights = [opened.weight for opened in sources]
    if any(weight is not None for weight in weights):
        places = np.flatnonzero(fates.codes == TRAIN)
        fates.drop(beyond_quotas(places, source, ids, weights), OVER_WEIGHT)
        decided.after("weights")
        decided.warn(of_weights(fates, places, source, [opened.name for opened in sources]))
    return decided


def _limit_sources(
    fates: Fates,
    source: "npt.NDArray[np.uint16]",
    ids: "npt.NDArray[np.uint64]",
    sources: Sequence[Opened],
) -> None:
    for number, opened in enumerate(sources):
        if opened.max_rows is not None:
            own = fates.kept[source[fates.kept] == number]
            if len(own) > opened.max_rows:
                fates.drop(own[~smallest(ids[own], opened.max_rows)], OVER_SOURCE_LIMIT)


def _divide(
    fates: Fates,
    on_test: "npt.NDArray[np.bool_]",
    frozen: "npt.NDArray[np.bool_]",
    settings: DatasetSettings,
    *,
    ids: "npt.NDArray[np.uint64]",
    groups: "npt.NDArray[np.uint64]",
) -> None:
    kept = fates.kept
    sides = divide(kept[~frozen[kept]], on_test, settings.split, ids=ids, groups=groups)
    for reason, left_out in sides.dropped.items():
        fates.drop(left_out, reason)
    fates.codes[sides.test] = TEST
