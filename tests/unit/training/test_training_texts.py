"""Continued pretraining through the worker: the loss falls on every token of a text."""

import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.training import worker
from tasks.training.guard_settings import Guards
from tasks.training.job import TrainingJob, TrainingResult

pytestmark = pytest.mark.usefixtures("own_signals_and_threads")

MakeJob = Callable[..., TrainingJob]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Pieces of 16 tokens of longer texts: nearly all end with the same word, and none with an end token."""
    folder = tmp_path / "texts"
    folder.mkdir()
    draw = random.Random(0)
    for side, count in (("train", 16), ("test", 4)):
        rows = []
        for at in range(count):
            ids = [draw.randrange(300, 320) for _ in range(15)] + [777]
            rows.append({"id": f"{at}", "input_ids": ids, "labels": ids, "prompt_length": 8})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{side}.parquet")
    return folder


def test_texts_are_learned_and_generation_ends_where_the_tokenizer_says(
    tmp_path: Path, make_job: MakeJob, texts: Path
) -> None:
    job = make_job(
        tmp_path / "working",
        training={"num_train_epochs": 8},
        tokens=texts,
        method="pretraining",
        guards=Guards(untrained_base="allow"),
    )
    worker.train(job)
    result = TrainingResult.model_validate_json(job.result.read_text())
    assert result.final_loss < result.first_loss - 0.05
    assert result.tokens == 8 * 16 * 16
    # A piece of a text ends anywhere: its last word is no sign to stop.
    assert 777 not in result.stop_token_ids
    assert result.stop_token_ids
