"""Of rows that are fetched again when they change, the newest of each."""

import json
import os
from array import array
from pathlib import Path

from tasks.dataset.reading import exact_json
from tasks.dataset.rows import short_hash
from tasks.errors import DataError


def write_newest(rows: Path, target: Path, key: str) -> int:
    """Write those lines of the JSONL file `rows` after which none has the same `key`; how many they are.

    In their order. Memory holds eight bytes of each row.

    Raises: DataError when a row has no key.
    """
    import numpy as np

    hashes = array("Q")
    with rows.open("rb") as stream:
        for line in stream:
            hashes.append(_hash(exact_json.loads(line), key))
    keys = np.array(hashes, dtype=np.uint64)[::-1]
    _, backwards = np.unique(keys, return_index=True)
    newest = np.zeros(len(keys), dtype=np.bool_)
    newest[len(keys) - 1 - backwards] = True
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    with rows.open("rb") as stream, temporary.open("wb") as written:
        for chosen, line in zip(newest.tolist(), stream, strict=True):
            if chosen:
                written.write(line)
        written.flush()
        os.fsync(written.fileno())
    temporary.replace(target)
    return int(newest.sum())


def _hash(row: dict[str, object], key: str) -> int:
    if key not in row:
        raise DataError(
            f"The query gives no column {key!r}, which dataset.sources[].key names; columns here: "
            f"{', '.join(row)}."
        )
    if row[key] is None:
        raise DataError(
            f"The key {key!r} is null in a row, so that nothing tells which row it replaces. Leave such "
            "rows out of the query (WHERE ... IS NOT NULL), or choose another column."
        )
    # With its type: a text 1 is no number 1.
    return int(short_hash(json.dumps(row[key])), 16)
