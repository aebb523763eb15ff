"""The refusal of a split that leaves nothing to train on, or nothing to evaluate."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tasks.dataset.fates import TEST, TRAIN, Fates
from tasks.dataset.reading.opening import Opened
from tasks.dataset.settings import SplitSettings
from tasks.dataset.spool import Spool
from tasks.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def refuse_empty_side(
    fates: Fates,
    spool: Spool,
    settings: SplitSettings,
    *,
    salt: str,
    read: int,
    before: dict[str, int],
) -> None:
    """Both sides must hold a row once the split is made.

    `before` are the rows, by reason, that never came into the spool; `read` counts those as well.

    Raises: DataError that says where the rows went and what to change.
    """
    import numpy as np

    kept = fates.kept
    test_rows = int((fates.codes == TEST).sum())
    if 0 < test_rows < len(kept):
        return
    _, sizes = np.unique(spool.column("group")[kept], return_counts=True)
    what = (
        f"The split leaves no {'train' if test_rows or not len(kept) else 'test'} row: "
        f"{_count(len(kept), 'row')} in {_count(len(sizes), 'group')}"
        f"{_left_out(fates, read, before)}"
    )
    if settings.by_time:
        raise DataError(f"{what}. {_about_time(spool, kept, settings)}")
    raise DataError(
        f"{what}, dataset.split.test is {settings.test}, the salt is {salt!r}. "
        f"{_about_groups(spool, kept, sizes)}"
    )


def refuse_empty_holdout(rows: int, removed: dict[str, int]) -> None:
    """A holdout must give a row; `removed` are the rows that cleaning left out as they were read.

    Raises: DataError.
    """
    if rows:
        return
    told = ", ".join(f"{count:,} × {reason}" for reason, count in removed.items())
    raise DataError(
        "dataset.holdout leaves no row to evaluate"
        + (f" (left out of all sources and the holdout: {told})" if told else "")
        + ". Correct its path or query, set dataset.cleaning.personal_data.policy to redact where "
        "`drop` took its rows, or take dataset.holdout out to evaluate the split's test rows alone."
    )


def refuse_holdout_of_training(holdout: Opened, sources: Sequence[Opened]) -> None:
    """A holdout that is one of the sources would leave that source nothing to train.

    Raises: DataError.
    """
    for source in sources:
        if source.digest == holdout.digest and _reading(source) == _reading(holdout):
            raise DataError(
                f"dataset.holdout ({holdout.name}) holds the very rows of the source {source.name}: all of "
                "them would be evaluated, and none trained. Name another file, or take dataset.holdout "
                "out: dataset.split.test keeps a share of the rows for the evaluation."
            )


def refuse_all_with_tested_prompts(fates: Fates, spool: Spool, *, trained: int) -> None:
    """Training rows must be left once those with evaluation rows' prompts, of `trained` rows, are out.

    Raises: DataError.
    """
    import numpy as np

    if (fates.codes == TRAIN).any():
        return
    prompts = spool.column("prompt")
    tested = np.flatnonzero(fates.codes == TEST)
    example = spool.row(int(tested[np.flatnonzero(prompts[tested] != 0)[0]]))
    raise DataError(
        f"No train row is left: all {trained:,} rows that the split gave to training have the prompt of "
        f"one of {len(tested):,} evaluation rows (for example the one of {example.source}), in other "
        "groups than those, and were left out, because a prompt on both sides is no test. Take "
        "dataset.sources[].group out, so that rows with one prompt are one group, add rows with other "
        "prompts, or, where the prompt says nothing, train the answers alone, as texts: "
        '`columns: {text: "{{ ... }}"}`.'
    )


def refuse_all_contaminated(fates: Fates, *, trained: int) -> None:
    """Training rows must be left after decontamination, which looked at `trained` rows.

    Raises: DataError.
    """
    if (fates.codes == TRAIN).any():
        return
    raise DataError(
        f"Decontamination leaves no train row: all {trained:,} rows that the split gave to training "
        f"resemble one of {int((fates.codes == TEST).sum()):,} evaluation rows. Are they all of one "
        "form? Then raise dataset.cleaning.contamination.similarity and ngram_share, or set "
        "dataset.cleaning.contamination to null. Are they variations of a few rows? Then name the "
        "column that says which belong together as dataset.sources[].group."
    )


def _reading(source: Opened) -> dict[str, Any]:
    """What decides the rows beside the bytes."""
    return {
        part: value
        for part, value in source.identity.items()
        if part not in ("name", "weight", "max_rows")
    }


def _left_out(fates: Fates, read: int, before: dict[str, int]) -> str:
    """` (30 rows were read; left out: 29 × same prompt and answer)`, or nothing."""
    import numpy as np

    reasons = dict(before)
    codes, firsts, counts = np.unique(fates.codes, return_index=True, return_counts=True)
    for _, first, count in zip(codes, firsts.tolist(), counts.tolist(), strict=True):
        if (reason := fates.reason(first)) is not None:
            reasons[reason] = count
    if not reasons:
        return ""
    told = ", ".join(f"{count:,} × {reason}" for reason, count in reasons.items())
    return f" ({_count(read, 'row')} were read; left out: {told})"


def _about_groups(
    spool: Spool, kept: "npt.NDArray[np.int64]", sizes: "npt.NDArray[np.int64]"
) -> str:
    ways = "Add rows, change dataset.split.test or dataset.split.salt, or "
    if len(kept) > 1 and len(sizes) == 1:
        return (
            f"A group is never divided, and all {len(kept):,} rows are in {_named(spool, int(kept[0]))}. "
            f"{ways}name a column that tells the rows apart as dataset.sources[].group: without one, "
            "rows with the same prompt are one group. Where the prompt says nothing, the answers can be "
            'trained alone, as texts: `columns: {text: "{{ ... }}"}`.'
        )
    return f"{ways}choose another dataset.sources[].group: a group is never divided."


def _about_time(spool: Spool, kept: "npt.NDArray[np.int64]", settings: SplitSettings) -> str:
    asked = (
        f"dataset.split.after is {settings.after}"
        if settings.after is not None
        else f"dataset.split.newest_days is {settings.newest_days}"
    )
    times = spool.column("time")
    times = times[kept if len(kept) else slice(None)]
    times = times[times == times]
    if not len(times):
        return f"{asked}. Add rows."
    first, last = (
        datetime.fromtimestamp(float(time), UTC).isoformat(timespec="seconds")
        for time in (times.min(), times.max())
    )
    return (
        f"{asked}, and the rows are from {first} to {last}. Choose a time between them, add rows, or "
        "split by hash: take dataset.split.after and newest_days out."
    )


def _named(spool: Spool, position: int) -> str:
    """The group of one row, for a person."""
    row = spool.row(position)
    return f"group {row.group!r} (for example {row.source})"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun if number == 1 else noun + 's'}"
