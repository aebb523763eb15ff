"""The steps that compare rows or filter them: each drops positions for a reason."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tasks.dataset.cleaning.contamination import Contamination
from tasks.dataset.cleaning.filters import LanguageFilter, LengthFilter
from tasks.dataset.cleaning.found import FORM_ROWS
from tasks.dataset.cleaning.near import NearDuplicates
from tasks.dataset.cleaning_settings import (
    CleaningSettings,
    ContaminationSettings,
    NearDuplicateSettings,
)
from tasks.dataset.duplicates import duplicates
from tasks.dataset.fates import TEST, TRAIN, Fates
from tasks.dataset.pace import Pace
from tasks.dataset.rows import Row
from tasks.dataset.spool import Spool

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Fractions = npt.NDArray[np.float64]

SHARED_PROMPT = "same prompt as an evaluation row"
NEAR_DUPLICATE = "near duplicate"
CONTAMINATED = "repeats an evaluation row"
NEAR_DUPLICATES, DECONTAMINATION = "near duplicates", "decontamination"
"""The names of the steps that take long."""


@dataclass
class Unjudged:
    """Evaluation rows of which nobody can tell whether training repeats them."""

    rows: int = 0
    """They hold too little text of their own, those of `resembled` included."""
    resembled: list[int] = field(default_factory=list)
    """Positions of those that more than `FORM_ROWS` training rows are like, which stay."""


def drop_duplicates(spool: Spool, fates: Fates, fractions: "Fractions") -> None:
    """One of each set of copies stays, and every row that is `TEST` already; see `duplicates`.

    A row whose fraction is negative is a test row.
    """
    ids, prompts, labels = (spool.column(name) for name in ("id", "prompt", "label"))
    found = duplicates(ids, prompts, labels, fractions, fates.codes == TEST)
    for reason, (gone, stays) in sorted(found.items()):
        fates.drop(gone, reason)
        # Within one side a copy is never trained where the other is tested.
        across = (fractions[gone] >= 0) & (fractions[stays] < 0)
        gone, stays = gone[across], stays[across]
        fates.copies.add(left_out=(gone, stays), tested=(stays, stays))


def drop_near_duplicates(
    spool: Spool,
    settings: NearDuplicateSettings,
    fates: Fates,
    fractions: "Fractions",
) -> None:
    """One of each set of near copies stays, by the rule of exact ones: the evaluated row.

    A row whose fraction is negative is a test row and always stays: a copy that arrives later must
    not push an old test row out.

    Raises: DataError when the rows' sketches do not fit into memory.
    """
    import numpy as np

    kept = fates.kept
    near = NearDuplicates(settings, len(kept))
    wanted = np.zeros(len(spool), dtype=np.bool_)
    wanted[kept] = True
    for _, row in Pace(NEAR_DUPLICATES, len(kept)).over(spool.rows(wanted)):
        near.add(row)
    # Of one group's copies the choice must not depend on the rows' order, but for code: its files
    # have one.
    labelled = spool.column("label")[kept] != 0
    ties = np.where(labelled, kept.astype(np.uint64), spool.column("id")[kept])
    ranks = np.empty(len(kept), dtype=np.float64)
    ranks[np.lexsort((kept, ties, fractions[kept]))] = np.arange(len(kept))
    stands = near.clusters(priority=ranks)
    copies = np.flatnonzero((stands != np.arange(len(kept))) & (fractions[kept] >= 0))
    names = {int(kept[i]): spool.name(int(kept[stands[i]])) for i in copies}
    fates.drop(kept[copies], NEAR_DUPLICATE, names)
    # The test rows among near copies all stay, and each of them is a copy of what goes.
    tested = np.flatnonzero(fractions[kept] < 0)
    fates.copies.add(left_out=(kept[copies], stands[copies]), tested=(kept[tested], stands[tested]))


def drop_unwanted(spool: Spool, settings: CleaningSettings, fates: Fates) -> None:
    """Apply the length filter, then the language filter, to rows that are not `TEST` already.

    Raises: DataError for a language that cannot be told.
    """
    filters: list[LengthFilter | LanguageFilter] = []
    if settings.length is not None:
        filters.append(LengthFilter(settings.length))
    if settings.language is not None:
        filters.append(LanguageFilter(settings.language))
    if not filters:
        return
    by_reason: dict[str, list[int]] = {}
    for position, row in spool.rows(fates.codes == TRAIN):
        reason = next((why for each in filters if (why := each.reason(row))), None)
        if reason is not None:
            by_reason.setdefault(reason, []).append(position)
    for reason, positions in sorted(by_reason.items()):
        fates.drop(positions, reason)


def drop_shared_prompts(spool: Spool, fates: Fates) -> list[int]:
    """Leave out training rows with a test row's prompt, which lie in other groups.

    A prompt of many training rows is an instruction, such as "Write a poem.", and stays. Returns the
    positions of the test rows that have such a prompt.
    """
    import numpy as np

    prompts = spool.column("prompt")
    trained = np.flatnonzero((fates.codes == TRAIN) & (prompts != 0))
    values, inverse, counts = np.unique(prompts[trained], return_inverse=True, return_counts=True)
    tested = np.flatnonzero((fates.codes == TEST) & (prompts != 0))
    shared = np.isin(values, prompts[tested]) & (counts <= FORM_ROWS)
    gone = trained[shared[inverse]]
    fates.drop(gone, SHARED_PROMPT)
    fates.copies.add(left_out=(gone, prompts[gone]), tested=(tested, prompts[tested]))
    many = np.isin(prompts[tested], values[counts > FORM_ROWS])
    return [int(position) for position in tested[many]]


def drop_contaminated(spool: Spool, settings: ContaminationSettings, fates: Fates) -> Unjudged:
    """Leave out training rows that repeat an evaluation row; evaluation rows are already `TEST`.

    Raises: DataError when the evaluation rows do not fit into memory.
    """
    import numpy as np

    tested = np.flatnonzero(fates.codes == TEST)
    trained = np.flatnonzero(fates.codes == TRAIN)
    # Training rows pass by twice.
    pace = Pace(DECONTAMINATION, len(tested) + 2 * len(trained))

    def rows(side: int) -> Iterator[Row]:
        return pace.over(row for _, row in spool.rows(fates.codes == side))

    found = Contamination(settings, rows(TEST), rows(TRAIN), len(trained))
    matches = found.matches(rows(TRAIN))
    details = {
        int(
            position
        ): f"{spool.name(int(tested[match.evaluation]))}: {match.how}, {match.share:.0%}"
        for position, match in zip(trained, matches, strict=True)
        if match is not None
    }
    fates.drop(details, CONTAMINATED, details)
    repeats = [(int(p), m.evaluation) for p, m in zip(trained, matches, strict=True) if m]
    gone, repeated = np.array(repeats, dtype=np.int64).reshape(-1, 2).T
    fates.copies.add(left_out=(gone, repeated), tested=(tested, np.arange(len(tested))))
    return Unjudged(found.unchecked, [int(tested[number]) for number in found.resembled])
