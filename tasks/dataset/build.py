"""From rows as the sources hold them to the two files that tokenization reads, step by step.

The rows pass by twice: once to be read and cleaned, with a few numbers of each kept in memory, and
once to be written where those numbers put them. Memory holds no text but a chunk of it.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.dataset.cleaner import Cleaner
from tasks.dataset.cleaning.normalise import EMPTIED
from tasks.dataset.cleaning.personal import PersonalData
from tasks.dataset.cleaning.quarantine import mask_quarantine
from tasks.dataset.deciding import decide
from tasks.dataset.empty_side import refuse_holdout_of_training
from tasks.dataset.fates import TEST, Fates
from tasks.dataset.pace import Pace
from tasks.dataset.profile import Profile
from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.interleave import interleaved
from tasks.dataset.reading.opening import Opened
from tasks.dataset.removed import Removed
from tasks.dataset.rows import Row
from tasks.dataset.settings import DatasetSettings
from tasks.dataset.spool import Spool
from tasks.seen import TEST_COPIES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SIDES = ("train", "test")
BAD_ROWS = "bad rows, which dataset.max_bad_rows allows"


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
    resembled: list[str] = field(default_factory=list)
    """Ids of evaluation rows that many training rows are like, which stay."""
    warnings: list[str] = field(default_factory=list)
    """What a person should look at before training."""
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
    """Write both sides: `SIDE.jsonl`, and `SIDE_rows.npy` (uint64: the rows' ids, sorted); and
    `test_copies.npy`, which `tasks.seen` reads.

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
        bad.raise_if_all()
        if holdout is not None:
            refuse_holdout_of_training(holdout, sources)
        if (found := settings.cleaning.personal_data) is not None and found.policy != "report":
            mask_quarantine(folder / "quarantine.jsonl", PersonalData(found))
        built.changed = cleaner.changed
        built.steps = _reading_steps(built.read, bad.count, cleaner)
        before = {BAD_ROWS: bad.count} if bad.count else {}
        decided = decide(
            spool,
            settings,
            sources,
            salt=salt,
            read=built.read + bad.count,
            removed={**before, **removed.counts},
        )
        built.steps += decided.steps
        built.holdout_rows = decided.holdout_rows
        built.unrecognisable = decided.unrecognisable
        built.resembled = decided.resembled
        built.warnings = decided.warnings
        of_cleaning = sorted(removed.counts, key=lambda reason: (reason != EMPTIED, reason))
        _write(folder, spool, decided.fates, removed, built)
        built.dropped = {
            reason: removed.counts[reason]
            for reason in dict.fromkeys([*of_cleaning, *decided.fates.reasons])
            if removed.counts[reason]
        }
    return built


def _reading_steps(read: int, bad_rows: int, cleaner: Cleaner) -> list[tuple[str, int]]:
    """What was done to each row by itself; the first number is all that the sources hold."""
    steps = [("read", read + bad_rows)]
    if bad_rows:
        steps.append(("bad rows put into quarantine", read))
    left = read
    for step, lost in cleaner.steps.items():
        left -= lost
        steps.append((step, left))
    return steps


def _read(
    sources: Sequence[Opened], holdout: Opened | None, bad: BadRows, built: Built
) -> Iterator[tuple[int, Row]]:
    for number, row in Pace("reading").over(interleaved(sources, bad)):
        built.read += 1
        yield number, row
    if holdout is not None:
        for row in holdout.rows(bad):
            built.read += 1
            yield len(sources), row


def _write(folder: Path, spool: Spool, fates: Fates, removed: Removed, built: Built) -> None:
    import numpy as np

    ids, sources = spool.column("id"), spool.column("source")
    places = [np.flatnonzero(fates.codes == side) for side in range(len(SIDES))]
    profiles = [Profile.of(spool, where) for where in places]
    streams = [(folder / f"{side}.jsonl").open("wb") for side in SIDES]
    hashes = [hashlib.sha256() for _ in SIDES]
    try:
        for position, line in enumerate(Pace("writing", len(spool)).over(spool.lines())):
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
    fates.copies.save(folder / TEST_COPIES, ids, fates.codes == TEST)


def any_order(ids: "npt.NDArray[np.uint64]") -> str:
    """sha256 (hex) of the sorted row ids: the same rows in any order have the same."""
    import numpy as np

    return hashlib.sha256(np.sort(ids).astype(">u8").tobytes()).hexdigest()
