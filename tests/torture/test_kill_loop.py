"""Kill a training at random moments until it is done, and again: every adapter has the same bytes.

TORTURE_KILLS (default 20) is how many kills there are at least, TORTURE_SEED (default 0) where they fall.
"""

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.training import checkpoints
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.settings import TrainingSettings
from tasks.training.worker import train

KILLS = int(os.environ.get("TORTURE_KILLS", "20"))
SEED = int(os.environ.get("TORTURE_SEED", "0"))
ROWS = 42
STEPS = 33
"""Three epochs of eleven, the last of them ragged."""
LONGEST_SECONDS = 120
END = 4092

pytestmark = [
    pytest.mark.torture,
    pytest.mark.timeout(3600),
    # The server that starts the workers listens on a Unix socket.
    pytest.mark.enable_socket,
]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 8 to 40 random tokens whose second half is the answer."""
    folder = tmp_path_factory.mktemp("tokens")
    generator = random.Random(1)
    for split, rows in (("train", ROWS), ("test", 4)):
        columns: dict[str, list[object]] = {"input_ids": [], "labels": [], "prompt_length": []}
        for _ in range(rows):
            length = generator.randrange(8, 41)
            ids = [generator.randrange(300, 4000) for _ in range(length - 1)] + [END]
            columns["input_ids"].append(ids)
            columns["labels"].append([-100] * (length // 2) + ids[length // 2 :])
            columns["prompt_length"].append(length // 2)
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def workers() -> Iterator[ForkServerContext]:
    """Processes that start with the libraries loaded: a kill costs a second and not ten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tasks.training.worker"])
        # The server starts with the first process and ends with this one.
        first = context.Process(target=time.sleep, args=(0,))
        first.start()
        first.join(LONGEST_SECONDS)
        yield context


def job(folder: Path, base: Path, tokens: Path) -> TrainingJob:
    settings = TrainingSettings(
        peft_config={"r": 4, "lora_dropout": 0.1},
        training_config={
            "learning_rate": 2e-2,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "num_train_epochs": 3,
            "save_steps": 2,
            "logging_steps": 1,
        },
        dtype="float32",
        guards={"untrained_base": "allow"},
    )
    return TrainingJob(
        base=base,
        base_name="tiny",
        base_commit=None,
        tokens=tokens,
        working=folder,
        seed=7,
        peft_config=settings.resolved_peft_config(),
        training_config=settings.resolved_training_config(),
        dtype=settings.dtype,
        guards=settings.guards,
        inputs={"seed": 7},
    )


def started(workers: ForkServerContext, task: TrainingJob) -> BaseProcess:
    process = workers.Process(target=train, args=(task,), daemon=True)
    process.start()
    return process


def finish(process: BaseProcess) -> None:
    process.join(LONGEST_SECONDS)
    assert process.exitcode == 0, f"the training ended with {process.exitcode}"


def writing(folder: Path) -> bool:
    """Whether a checkpoint is being written now."""
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir()]
    return any(not (path / checkpoints.MANIFEST).exists() for path in found)


def kill_at(process: BaseProcess, task: TrainingJob, moment: str, after: float) -> bool:
    """SIGKILL so many seconds after the moment; False when the training was done before."""
    deadline = time.monotonic() + LONGEST_SECONDS
    if moment == "in a checkpoint":
        while process.is_alive() and not writing(task.checkpoints):
            assert time.monotonic() < deadline, "no checkpoint is written"
            time.sleep(0.0005)
    process.join(after)
    alive = process.is_alive()
    if alive:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    process.join(LONGEST_SECONDS)
    assert process.exitcode in (0, -signal.SIGKILL), f"it ended with {process.exitcode} by itself"
    return process.exitcode != 0


def test_every_training_that_was_killed_ends_with_the_bytes_of_one_that_was_not(
    workers: ForkServerContext, tiny_base: Path, tokens: Path, tmp_path: Path
) -> None:
    generator = random.Random(SEED)
    whole = job(tmp_path / "whole", tiny_base, tokens)
    finish(started(workers, whole))
    began = time.monotonic()
    again = job(tmp_path / "again", tiny_base, tokens)
    finish(started(workers, again))
    seconds = time.monotonic() - began
    expected = result(whole)
    assert expected.steps == STEPS
    assert result(again).adapter_sha256 == expected.adapter_sha256

    kills: Counter[str] = Counter()
    torn, resumed, trainings = 0, 0, 0
    while kills.total() < KILLS:
        trainings += 1
        task = job(tmp_path / f"killed-{trainings}", tiny_base, tokens)
        while not task.result.exists():
            moment = generator.choice(["at any time", "in a checkpoint"])
            # Writing one takes some milliseconds.
            after = generator.uniform(0, seconds if moment == "at any time" else 0.02)
            if kill_at(started(workers, task), task, moment, after):
                kills[moment] += 1
                torn += writing(task.checkpoints)
        found = result(task)
        resumed += found.resumed_from_step is not None
        where = f"training {trainings}, seed {SEED}, after {kills.total()} kills: {dict(kills)}"
        assert found.adapter_sha256 == expected.adapter_sha256, where
        assert found.steps == STEPS, where
    print(
        f"\n{kills.total()} kills ({dict(kills)}) in {trainings} trainings of {STEPS} steps; {torn} left "
        f"a torn checkpoint, {resumed} trainings went on from one: all adapters equal."
    )
    # A loop that never met what it looks for proves nothing.
    assert torn > 0
    assert resumed > 0


def result(task: TrainingJob) -> TrainingResult:
    return TrainingResult.model_validate_json(task.result.read_text(encoding="utf-8"))
