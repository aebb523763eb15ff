"""From rows as the sources hold them to the two files that tokenization reads, step by step.

The rows pass by twice: once to be read and cleaned, with a few numbers of each kept in memory, and
once to be written where those numbers put them. Memory holds no text but a chunk of it.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.dataset.cleaner import Cleaner
from tasks.dataset.fates import TEST, Fates
from tasks.dataset.profile import Profile
from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.interleave import interleaved
from tasks.dataset.reading.opening import Opened
from tasks.dataset.removed import Removed
from tasks.dataset.rows import Row
from tasks.dataset.settings import DatasetSettings
from tasks.dataset.split import divide, smallest
from tasks.dataset.spool import Spool
from tasks.dataset.steps import (
    drop_contaminated,
    drop_duplicates,
    drop_near_duplicates,
    drop_unwanted,
)
from tasks.errors import DataError
from tasks.progress import announce

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SIDES = ("train", "test")
SECONDS_BETWEEN_EVENTS = 1.0
IN_HOLDOUT_GROUP = "in a group of the holdout"
OVER_SOURCE_LIMIT = "over dataset.sources[].max_rows"


@dataclass
class Built:
    """What came out, for the card."""

    sources: list[Opened]
    read: int
    """Conversations that the sources gave, holdout included."""
    holdout_rows: int
    steps: list[tuple[str, int]]
    """(what was done, rows left after it), in order."""
    changed: Counter[str] = field(default_factory=Counter)
    """What cleaning changed in rows that it kept: kind -> rows."""
    unrecognisable: int = 0
    """Evaluation rows that hold too little text of their own to be found among training rows."""
    dropped: dict[str, int] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    """Side -> lengths, slices and a sample of its rows."""
    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    """Side -> `ordered` (sha256 of the file) and `any_order` (sha256 of the sorted row ids)."""


def build(
    folder: Path,
    scratch: Path,
    settings: DatasetSettings,
    *,
    salt: str,
    sources: Sequence[Opened],
    holdout: Opened | None,
) -> Built:
    """Write both sides: `SIDE.jsonl`, and `SIDE_rows.npy` (uint64: the rows' ids, sorted).

    The holdout's rows end `test.jsonl`. Rows that were left out are in `removed.jsonl` and
    `quarantine.jsonl`.

    Raises: DataError with every bad row, or when a side of the split is empty.
    """
    opened = [*sources, *([holdout] if holdout else [])]
    bad = BadRows(settings.max_bad_rows, folder / "quarantine.jsonl")
    with Removed(folder / "removed.jsonl") as removed:
        spool = Spool(scratch / "rows.jsonl", salt)
        built = Built(list(opened), 0, 0, [])
        cleaner = Cleaner(settings.cleaning, removed)
        for number, row in _read(sources, holdout, bad, built):
            cleaned = cleaner(row)
            if cleaned is not None:
                spool.add(cleaned, number)
        bad.raise_if_any()
        built.changed = cleaner.changed
        built.steps.append(("read", len(spool)))
        fates = _decide(spool, settings, sources, holdout, built)
        _refuse_empty_side(fates, spool, settings, salt)
        _write(folder, spool, fates, removed, built)
        built.dropped = dict(removed.counts)
    return built


def _read(
    sources: Sequence[Opened], holdout: Opened | None, bad: BadRows, built: Built
) -> Iterator[tuple[int, Row]]:
    began = told = time.monotonic()
    for number, row in interleaved(sources, bad):
        built.read += 1
        yield number, row
        if built.read % 1000 == 0 and (now := time.monotonic()) - told >= SECONDS_BETWEEN_EVENTS:
            told = now
            speed = built.read / (now - began)
            announce("prepared", stage="dataset", done=built.read, rows_per_second=speed)
    if holdout is not None:
        for row in holdout.rows(bad):
            built.read += 1
            yield len(sources), row


def _decide(
    spool: Spool,
    settings: DatasetSettings,
    sources: Sequence[Opened],
    holdout: Opened | None,
    built: Built,
) -> Fates:
    import numpy as np

    fates = Fates(len(spool))
    fractions = spool.column("fraction").copy()
    frozen = spool.column("source") == len(sources) if holdout else np.zeros(len(spool), np.bool_)
    # Of copies the one on the evaluated side stays, and the holdout's before all others.
    fractions[frozen] = -1.0
    groups = spool.column("group")
    ids = spool.column("id")
    drop_duplicates(spool, fates, fractions)
    built.steps.append(("exact duplicates", len(fates.kept)))
    cleaning = settings.cleaning
    if cleaning.near_duplicates is not None:
        drop_near_duplicates(
            spool,
            cleaning.near_duplicates,
            fates,
            fractions,
            tested_below=0.0 if settings.split.by_time else settings.split.test,
        )
        built.steps.append(("near duplicates", len(fates.kept)))
    if cleaning.length is not None or cleaning.language is not None:
        drop_unwanted(spool, cleaning, fates)
        built.steps.append(("length and language", len(fates.kept)))
    for number, source in enumerate(sources):
        if source.max_rows is not None:
            own = fates.kept[spool.column("source")[fates.kept] == number]
            if len(own) > source.max_rows:
                fates.drop(own[~smallest(ids[own], source.max_rows)], OVER_SOURCE_LIMIT)
    kept = fates.kept
    fates.drop(kept[np.isin(groups[kept], groups[frozen]) & ~frozen[kept]], IN_HOLDOUT_GROUP)
    kept = fates.kept
    sides = divide(
        kept[~frozen[kept]],
        settings.split,
        fractions=fractions,
        ids=ids,
        groups=groups,
        times=spool.column("time"),
    )
    for reason, left_out in sides.dropped.items():
        fates.drop(left_out, reason)
    fates.codes[sides.test] = TEST
    fates.codes[kept[frozen[kept]]] = TEST
    built.holdout_rows = int(frozen[kept].sum())
    built.steps.append(("limits and split", len(fates.kept)))
    if cleaning.contamination is not None:
        built.unrecognisable = drop_contaminated(spool, cleaning.contamination, fates)
        built.steps.append(("decontamination", len(fates.kept)))
    return fates


def _write(folder: Path, spool: Spool, fates: Fates, removed: Removed, built: Built) -> None:
    import numpy as np

    ids, sources = spool.column("id"), spool.column("source")
    places = [np.flatnonzero(fates.codes == side) for side in range(len(SIDES))]
    profiles = [
        Profile.of(spool, where, first=int(where[np.argmin(ids[where])])) for where in places
    ]
    streams = [(folder / f"{side}.jsonl").open("wb") for side in SIDES]
    hashes = [hashlib.sha256() for _ in SIDES]
    try:
        for position, line in enumerate(spool.lines()):
            code = int(fates.codes[position])
            if code < len(SIDES):
                streams[code].write(line + b"\n")
                hashes[code].update(line + b"\n")
                profiles[code].see(position, line, built.sources[int(sources[position])].name)
            else:
                removed.add(str(fates.reason(position)), line, fates.details.get(position))
    finally:
        for stream in streams:
            stream.close()
    for number, side in enumerate(SIDES):
        built.profiles[side] = profiles[number]
        built.digests[side] = {
            "ordered": hashes[number].hexdigest(),
            "any_order": any_order(ids[places[number]]),
        }
        np.save(folder / f"{side}_rows.npy", np.sort(ids[places[number]]))


def any_order(ids: "npt.NDArray[np.uint64]") -> str:
    """sha256 (hex) of the sorted row ids: the same rows in any order have the same."""
    import numpy as np

    return hashlib.sha256(np.sort(ids).astype(">u8").tobytes()).hexdigest()


def _refuse_empty_side(fates: Fates, spool: Spool, settings: DatasetSettings, salt: str) -> None:
    import numpy as np

    kept = fates.kept
    tested = int((fates.codes == TEST).sum())
    if 0 < tested < len(kept):
        return
    groups = len(np.unique(spool.column("group")[kept]))
    raise DataError(
        f"The split leaves no {'train' if tested or not len(kept) else 'test'} row: "
        f"{len(kept)} {'row' if len(kept) == 1 else 'rows'} in {groups} "
        f"{'group' if groups == 1 else 'groups'}, dataset.split.test is {settings.split.test}, "
        f"the salt is {salt!r}. Add rows, change dataset.split.test or dataset.split.salt, or "
        "choose another dataset.sources[].group: a group is never divided."
    )
