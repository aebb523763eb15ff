"""Near duplicates: rows that are the same but for a few characters, found by MinHash and LSH.

Two rows count as near duplicates when their conversations are alike, and their endings too: the
last words of the prompt with the answer. Without the second condition, two questions about one
long document would be copies of each other, and so would the rows of a template with a long
instruction and a short input. Rows with other tools, another rejected ending or another verdict are never
near duplicates: what sets them apart is not in their conversations. Nor are rows with other figures:
a balance, a date or a version is what such a row teaches, however little else it says. A copy that
stays because of a counter costs little; a fact that goes unseen is lost.

A row is a sketch of 192 bytes. Equal pieces of sketches ("bands", Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, chapter 3) bring candidates together by sorting, which takes two arrays
of numbers where tables of keys would take several times a row's sketch; then the whole sketches
of candidates are compared.
"""

import hashlib
import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import orjson

from tasks.dataset.cleaning.clusters import Clusters
from tasks.dataset.cleaning.shingles import compared, hashed, sketches, slots_needed
from tasks.dataset.cleaning_settings import NearDuplicateSettings
from tasks.dataset.rows import Row
from tasks.errors import DataError
from tasks.memory import available_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SLOTS = 128
ENDING_SLOTS = 64
BYTES_PER_ROW = 280
"""Sketches and what clustering needs at its peak; a test measures it."""

_ENDING_CHARACTERS = 100
_BATCH_CHARACTERS, _BATCH_ROWS = 500_000, 1024
_FIGURE = re.compile(r"\d+")
_log = logging.getLogger(__name__)


class NearDuplicates:
    """Add every row once, then ask which rows are near duplicates of which."""

    def __init__(
        self,
        settings: NearDuplicateSettings,
        rows_expected: int = 0,
        memory_bytes: int | None = None,
    ) -> None:
        """`memory_bytes` is what may be used; by default what is free now.

        Raises: DataError when `rows_expected` rows do not fit.
        """
        import numpy as np

        self._settings = settings
        self._free = available_bytes() if memory_bytes is None else memory_bytes
        self._refuse_beyond(rows_expected)
        self._sketches = np.empty((rows_expected, SLOTS + ENDING_SLOTS), dtype=np.uint8)
        self._rows = 0
        self._waiting: list[tuple[str, str, int]] = []
        self._waiting_characters = 0

    def __len__(self) -> int:
        return self._rows + len(self._waiting)

    def add(self, row: Row) -> None:
        """Add a row; its place in the order of adding is its number.

        Raises: DataError when the rows so far need more memory than there is.
        """
        prompt, answer = compared(row)
        ending = f"{prompt[-_ENDING_CHARACTERS:]} {answer}"
        whole = f"{prompt} {answer}"
        self._waiting.append((whole, ending, _kind(row, _FIGURE.findall(whole))))
        self._waiting_characters += len(prompt) + 2 * len(answer)
        full = len(self._waiting) == _BATCH_ROWS or self._waiting_characters > _BATCH_CHARACTERS
        if full:
            self._sketch()

    def clusters(
        self, priority: "npt.NDArray[np.float64] | None" = None
    ) -> "npt.NDArray[np.int32]":
        """For each row the number of the row that stands for it: its own, unless it is a copy.

        Of near duplicates, the row with the smallest `priority` stands for the others (the first
        added where they are equal, or without `priority`), and every row resembles the one that
        stands for it: a chain of small changes does not join its ends.
        """
        import numpy as np

        self._sketch()
        sketched = self._sketches[: self._rows]
        if priority is None:
            order = np.arange(self._rows, dtype=np.int32)
        else:
            order = np.argsort(priority, kind="stable").astype(np.int32)
        threshold = self._settings.threshold
        clusters = Clusters(
            sketched,
            order,
            # Eight slots a band find 99 % of pairs at 0.85, four find them at 0.6.
            band_slots=8 if threshold >= 0.8 else 4,
            bands_end=SLOTS,
            needed=(
                (slice(0, SLOTS), slots_needed(threshold, SLOTS)),
                (slice(SLOTS, None), slots_needed(threshold, ENDING_SLOTS)),
            ),
        )
        found = clusters.found()
        _log.info(
            "Found %d near duplicates among %d rows",
            np.count_nonzero(found != np.arange(len(found), dtype=np.int32)),
            len(found),
        )
        return found

    def _sketch(self) -> None:
        if not self._waiting:
            return
        rows = self._rows + len(self._waiting)
        if rows > len(self._sketches):
            self._refuse_beyond(rows)
            # In place where the system can, and little at a time: a copy would need twice the memory.
            self._sketches.resize((rows + rows // 16, SLOTS + ENDING_SLOTS), refcheck=False)
        target = self._sketches[self._rows : rows]
        whole, endings, kinds = zip(*self._waiting, strict=True)
        target[:, :SLOTS] = sketches(*_apart(whole, kinds), SLOTS)
        target[:, SLOTS:] = sketches(*_apart(endings, kinds), ENDING_SLOTS)
        self._rows = rows
        self._waiting = []
        self._waiting_characters = 0

    def _refuse_beyond(self, rows: int) -> None:
        needed = rows * BYTES_PER_ROW
        if self._free is None or needed <= self._free:
            return
        raise DataError(
            f"Finding near duplicates among {rows:,} rows needs {needed / 1e9:.2f} GB of memory "
            f"({BYTES_PER_ROW} bytes a row), and {self._free / 1e9:.2f} GB are free. Use a machine "
            "with more memory, fewer rows (dataset.sources[].max_rows), or set "
            "dataset.cleaning.near_duplicates to null: exact duplicates are removed all the same."
        )


def _kind(row: Row, figures: Sequence[str]) -> int:
    """A number that rows with the same tools, rejected ending, verdict and figures share; 0 without."""
    if not row.tools and not row.rejected and row.desirable is None and not figures:
        return 0
    beside = orjson.dumps(
        [row.tools, row.rejected, row.desirable, figures], option=orjson.OPT_SORT_KEYS
    )
    return int.from_bytes(hashlib.sha256(beside).digest()[:8])


def _apart(
    texts: Sequence[str], kinds: Sequence[int]
) -> "tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]":
    """The texts' shingles, hashed so that texts of two kinds share none."""
    import numpy as np

    hashes, offsets = hashed(texts)
    if any(kinds):
        lengths = (offsets[1:] - offsets[:-1]).astype(np.int64)
        hashes = hashes ^ np.repeat(np.array(kinds, np.uint64), lengths)
    return hashes, offsets
