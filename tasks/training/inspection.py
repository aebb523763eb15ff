"""Ask a worker process what a training would be, without running it."""

import shutil
import uuid

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks import launch
from tasks.artifacts import Tokens
from tasks.base import Base
from tasks.errors import StageFailed
from tasks.home import Home
from tasks.methods import COMPARED, ROWS
from tasks.training.job import MEASURED_STEPS, Inspection, InspectionJob
from tasks.training.packs import packed_table, read_packs
from tasks.training.settings import TrainingSettings
from tasks.training.starting import worker_environment


def inspect_training(
    settings: TrainingSettings, *, base: Base, tokens: Tokens, home: Home
) -> Inspection:
    """Parameters, target modules, memory and time of a training on these tokens.

    Nothing is kept. Takes about ten seconds, most of them for importing torch.

    Raises: UserError for target modules that the base does not have, or a missing library;
    WorkerFailed when the worker dies.
    """
    working = home.work / f"inspection-{uuid.uuid4().hex[:8]}"
    config = settings.resolved_training_config(base.path)
    try:
        columns = ["input_ids", "labels"]
        kind = ROWS[settings.method]
        if kind in COMPARED:
            columns += ["prompt_length", "rejected_ids"]
        if kind == "judged":
            columns.append("desirable")
        table = pq.read_table(tokens.path / "train.parquet", columns=columns)
        if packs := read_packs(tokens.path):
            table = packed_table(table, packs)
        lengths = _lengths(table)
        working.mkdir(parents=True)
        pq.write_table(_sample(table, lengths, config), working / "train.parquet")
        job = InspectionJob(
            base=base.path,
            base_name=base.model,
            working=working,
            rows=table.num_rows + _pairs_read_twice(table),
            longest=pc.max(lengths).as_py(),
            longest_answer=_longest_answer(table),
            method=settings.method,
            peft_config=settings.resolved_peft_config(),
            target_slices=settings.target_slices,
            training_config=config,
            quantization=settings.quantization,
            dtype=settings.dtype,
            attention=settings.attention,
        )
        launch.run(
            launch.module("tasks.training.inspect_worker", str(launch.write_job(working, job))),
            log=home.logs / "inspection.log",
            name="The inspection of the model",
            environment=worker_environment(),
            timeout_seconds=600,
            repeatable=False,
        )
        if not job.result.is_file():
            raise StageFailed(f"The inspection gave no result. Log: {home.logs / 'inspection.log'}")
        return Inspection.model_validate_json(job.result.read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _lengths(table: pa.Table) -> pa.ChunkedArray:
    """Tokens of each row, or of the longer answer of a pair with its prompt."""
    lengths = pc.list_value_length(table["input_ids"])
    if "rejected_ids" not in table.column_names:
        return lengths
    worse = pc.add(table["prompt_length"], pc.list_value_length(table["rejected_ids"]))
    return pc.max_element_wise(lengths, worse)


def _pairs_read_twice(table: pa.Table) -> int:
    """KTO reads either answer of a pair as a row of its own."""
    return 0 if "desirable" not in table.column_names else table["desirable"].null_count


def _sample(table: pa.Table, lengths: pa.ChunkedArray, config: dict[str, object]) -> pa.Table:
    """Rows or packs for a few steps, of all lengths in the dataset's proportion."""
    batch = int(str(config.get("per_device_train_batch_size", 8)))
    # One step more, to warm up.
    steps = 1 + MEASURED_STEPS
    wanted = batch * int(str(config.get("gradient_accumulation_steps", 1))) * steps
    order = pc.sort_indices(lengths).to_pylist()
    # Evenly over the sorted rows; a small dataset gives some of its rows twice.
    picked = [order[(2 * at + 1) * len(order) // (2 * wanted)] for at in range(wanted)]
    return table.take(picked)


def _longest_answer(table: pa.Table) -> int:
    labels = table["labels"].combine_chunks()
    rows = pc.list_parent_indices(labels)
    trained = pc.filter(rows, pc.not_equal(pc.list_flatten(labels), -100))
    counts = pc.value_counts(trained).field("counts")
    return int(pc.max(counts).as_py() or 0)
