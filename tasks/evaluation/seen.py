"""Leave the test rows that the champion was trained on out of the evaluation, for all models alike."""

import logging
from pathlib import Path

from tasks.seen import TEST_COPIES, SeenPolicy, seen_by_champion

_log = logging.getLogger(__name__)


def unseen_rows(
    rows: Path, champion_rows: Path | None, policy: SeenPolicy, folder: Path
) -> tuple[Path, int]:
    """The test rows to evaluate on, and how many were taken out.

    `rows` is the tokenization's `test.parquet`, beside which it has the dataset's list of copies; a
    filtered copy goes to `folder`. `champion_rows` is None when there is no champion, or one that keeps
    no list of its rows.

    Raises: DataError as `tasks.seen.seen_by_champion` does.
    """
    if champion_rows is None:
        return rows, 0
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(rows)
    # A row that was made of a part of another begins with that one's id.
    ids = np.array([int(name[:16], 16) for name in table["id"].to_pylist()], dtype=np.uint64)
    seen = seen_by_champion(ids, champion_rows, policy, copies=rows.with_name(TEST_COPIES))
    count = int(seen.sum())
    if not count:
        return rows, 0
    _log.warning(
        "%d of %d test rows were training rows of the champion, or are copies of some, and are left out",
        count,
        len(ids),
    )
    kept = folder / "test.parquet"
    pq.write_table(table.filter(pa.array(~seen)), kept, compression="zstd")
    return kept, count
