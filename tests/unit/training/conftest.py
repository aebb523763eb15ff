"""Token rows and a tiny base, as the stages before training would hand them over."""

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Adapter, Tokens
from tasks.base import Base
from tasks.home import Home
from tasks.store import Store, digest
from tasks.training.job import TrainingJob
from tasks.training.settings import TrainingSettings

END = 4092
"""`<|end|>` of the starter's tokenizer."""
TRAINED = {"learning_rate": 2e-2, "per_device_train_batch_size": 4, "logging_steps": 1}


def write_tokens(folder: Path, train: int, test: int = 4, seed: int = 0) -> Tokens:
    """Rows of 8 to 40 random tokens whose second half is the answer, ending with `<|end|>`."""
    generator = random.Random(seed)
    folder.mkdir(parents=True)
    counts: dict[str, dict[str, int]] = {"rows": {}, "tokens": {}, "trained_tokens": {}}
    for split, rows in (("train", train), ("test", test)):
        columns: dict[str, list[Any]] = {
            "id": [],
            "input_ids": [],
            "labels": [],
            "prompt_length": [],
        }
        for at in range(rows):
            length = generator.randrange(8, 41)
            ids = [generator.randrange(300, 4000) for _ in range(length - 1)] + [END]
            prompt = length // 2
            columns["id"].append(f"{split}-{at}")
            columns["input_ids"].append(ids)
            columns["labels"].append([-100] * prompt + ids[prompt:])
            columns["prompt_length"].append(prompt)
        counts["rows"][split] = rows
        counts["tokens"][split] = sum(map(len, columns["input_ids"]))
        counts["trained_tokens"][split] = sum(x != -100 for row in columns["labels"] for x in row)
        ints = pa.list_(pa.int32())
        schema = pa.schema(
            [
                ("id", pa.string()),
                ("input_ids", ints),
                ("labels", ints),
                ("prompt_length", pa.int32()),
            ]
        )
        pq.write_table(pa.table(columns, schema=schema), folder / f"{split}.parquet")
    return Tokens(
        path=folder,
        fingerprint=digest([train, test, seed]),
        reused=False,
        seconds=0.0,
        **counts,
    )


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Threads of tiny matrices only wait for each other, and other tests may run beside these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "rows", train=26)


@pytest.fixture(scope="session")
def base(tiny_base: Path) -> Base:
    return Base(
        path=tiny_base,
        model="../examples/tiny",
        commit=None,
        weights_sha256="w" * 64,
        tokenizer_sha256="t" * 64,
    )


@pytest.fixture(scope="session")
def settings() -> TrainingSettings:
    """Two epochs of seven batches, on linear layers of every kind, with dropout."""
    return TrainingSettings(
        peft_config={"r": 4, "lora_dropout": 0.1},
        training_config=TRAINED | {"gradient_accumulation_steps": 1, "save_steps": 3},
        dtype="float32",
        # The tiny base has random weights.
        guards={"untrained_base": "allow"},
    )


MakeJob = Callable[..., TrainingJob]


@pytest.fixture(scope="session")
def end() -> int:
    """The id of `<|end|>`."""
    return END


@pytest.fixture(scope="session")
def make_job(tokens: Tokens, base: Base, settings: TrainingSettings) -> MakeJob:
    """A job for the worker in a given folder; `peft` and `training` replace single fields."""

    def make(
        working: Path,
        peft: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        **changes: Any,
    ) -> TrainingJob:
        values = {
            "base": base.path,
            "base_name": base.model,
            "base_commit": None,
            "tokens": tokens.path,
            "working": working,
            "seed": 7,
            "peft_config": settings.resolved_peft_config() | (peft or {}),
            "training_config": settings.resolved_training_config() | (training or {}),
            "dtype": settings.dtype,
            "guards": settings.guards,
        }
        return TrainingJob(**values | changes)

    return make


@pytest.fixture
def job(tmp_path: Path, make_job: MakeJob) -> MakeJob:
    """A job of a given name in this test's folder."""

    def make(name: str = "working", **changes: Any) -> TrainingJob:
        return make_job(tmp_path / name, **changes)

    return make


@pytest.fixture
def own_signals_and_threads() -> Iterator[None]:
    """What a training in this process changes for good is put back."""
    import torch

    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    yield
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)


Train = Callable[..., Adapter]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "loraline-home")


@pytest.fixture
def train(home: Home, settings: TrainingSettings, tokens: Tokens, base: Base) -> Train:
    """`train_adapter` with the fixtures of this module, each of which a test may replace."""
    from tasks.training.work import train_adapter

    def call(**changes: Any) -> Adapter:
        arguments = {"seed": 7, "tokens": tokens, "base": base, "home": home} | changes
        settings_ = arguments.pop("settings", settings)
        return train_adapter(Store(home.store), settings_, **arguments)

    return call
