"""What the training takes from the version that it starts from, and what it keeps of it."""

import re
from pathlib import Path

from tasks.methods import Method
from tasks.registry import EARLIER_ROWS, VersionFiles
from tasks.seen import TEST_COPIES, SeenPolicy, seen_by_champion
from tasks.start import Beginning
from tasks.training.job import StartJob, StartResult, TrainingResult

_ROW_ID = re.compile(r"[0-9a-f]{16}")
_LIKELIHOODS = ("sft", "pretraining")
"""Methods whose training loss is what the evaluation measures: nats per token."""


def start_job(files: VersionFiles, method: Method) -> StartJob:
    """What the worker needs to know of the version; paths, and nothing of MLflow."""
    loss = files.metrics.get("loss")
    return StartJob(
        uri=f"models:/{files.name}/{files.version}",
        adapter=files.folder,
        adapter_sha256=files.adapter_sha256,
        base_sha256=files.base_sha256,
        fixture=files.fixture,
        recorded_loss=float(loss) if loss is not None and method in _LIKELIHOODS else None,
    )


def refuse_seen_rows(test: Path, files: VersionFiles, policy: SeenPolicy) -> None:
    """Look, before anything is trained, for test rows that the start or its own starts were trained on.

    `test` is the tokenization's `test.parquet`.

    Raises: DataError when there are some and the policy is `refuse`, or when no other is left.
    """
    import numpy as np
    import pyarrow.parquet as pq

    names = pq.read_table(test, columns=["id"])["id"].to_pylist()
    # A row that was made of a part of another begins with that one's id.
    ids = np.array([int(n[:16], 16) for n in names if _ROW_ID.match(n)], dtype=np.uint64)
    uri = f"models:/{files.name}/{files.version}"
    for seen, whose in (
        (files.train_rows, f"{uri}, which training.init_from names"),
        (files.earlier_rows, f"a version that {uri} started from"),
    ):
        if seen is not None and len(ids):
            seen_by_champion(ids, seen, policy, whose, copies=test.with_name(TEST_COPIES))


def with_beginning(result: TrainingResult, beginning: Beginning) -> TrainingResult:
    """The worker's result with what only the parent knows."""
    start: StartResult | None = result.start
    if start is not None:
        start = start.model_copy(update={"replayed_rows": beginning.replayed_rows})
    return result.model_copy(update={"start": start, "asked": beginning.asked})


def write_earlier_rows(folder: Path, files: VersionFiles) -> None:
    """`earlier_rows.npy`: ids (uint64, sorted) of all rows that the start and its own starts were trained on.

    What they were trained on, this adapter has seen: as test rows they would favour it.
    """
    import numpy as np

    known = [path for path in (files.train_rows, files.earlier_rows) if path is not None]
    if known:
        rows = np.unique(np.concatenate([np.load(path, allow_pickle=False) for path in known]))
        np.save(folder / EARLIER_ROWS, rows)
