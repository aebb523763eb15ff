"""Packed rows on a GPU, with each attention implementation that it may have. Skipped where there is none."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional
from transformers import Phi3Config, Phi3ForCausalLM

from tasks.tokenization.packing import write_packs
from tasks.training import engine, loading, worker
from tasks.training.attention_choice import VARLEN
from tasks.training.collators import NUM_TOKENS
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.kernels import varlen
from tasks.training.packs import EXAMPLE_LENGTHS, read_packs
from tasks.training.settings import TrainingSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_flash = pytest.mark.skipif(
    importlib.util.find_spec("flash_attn") is None, reason="flash_attn is not installed"
)
IMPLEMENTATIONS = [
    "sdpa",
    "eager",
    "flex_attention",
    VARLEN,
    pytest.param("flash_attention_2", marks=needs_flash),
]
LENGTHS = [120, 7, 64, 33, 90, 1, 50, 128, 17, 76, 61, 2]
CAPACITY = 160


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A two-layer Phi-3 whose heads are as wide as flex and flash attention ask for."""
    folder = tmp_path_factory.mktemp("gpu") / "base"
    shutil.copytree(tiny_base, folder)
    torch.manual_seed(0)
    config = Phi3Config.from_pretrained(tiny_base)
    config.update({"hidden_size": 128, "intermediate_size": 256})
    Phi3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu-tokens")
    ids = [[300 + (row * 31 + at * 7) % 3000 for at in range(n)] for row, n in enumerate(LENGTHS)]
    ints = pa.list_(pa.int32())
    table = pa.table(
        {
            "input_ids": pa.array(ids, ints),
            "labels": pa.array(
                [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in ids], ints
            ),
            "prompt_length": pa.array([len(row) // 2 for row in ids], pa.int32()),
        }
    )
    for split in ("train", "test"):
        pq.write_table(table, folder / f"{split}.parquet")
    write_packs(folder, LENGTHS, CAPACITY)
    return folder


@pytest.fixture
def job(tmp_path: Path, base: Path, tokens: Path) -> TrainingJob:
    settings = TrainingSettings(
        training_config={"learning_rate": 1e-2, "logging_steps": 1, "max_steps": 6}
    )
    return TrainingJob(
        base=base,
        base_name="./tiny",
        base_commit=None,
        tokens=tokens,
        working=tmp_path / "working",
        seed=1,
        peft_config=settings.resolved_peft_config(),
        training_config=settings.resolved_training_config(),
        guards={"untrained_base": "allow"},
    )


Use = Callable[[str], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Load bases with an attention implementation of the test's choice."""
    varlen.register()
    real = loading.load_base

    def choose(implementation: str) -> None:
        def load(*args: Any, **kwargs: Any) -> Any:
            model = real(*args, **kwargs)
            model.set_attn_implementation(implementation)
            return model

        monkeypatch.setattr(loading, "load_base", load)

    return choose


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_logits_loss_and_gradients_are_those_of_the_rows_alone(
    job: TrainingJob,
    use: Use,
    implementation: str,
    dtype: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flat = implementation in ("flash_attention_2", VARLEN)
    if flat and dtype == "float32":
        pytest.skip("flash attention has no float32")
    use(implementation)
    # Products of float32 would be rounded to ten bits otherwise.
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    rows = engine.read_rows(job.tokens / "train.parquet")
    packs = read_packs(job.tokens)
    assert packs is not None
    precision = loading.choose_precision(dtype)
    ours = engine.build_trainer(job, engine.in_packs(rows, packs), precision)
    torch.manual_seed(1)
    adapter = [p for p in ours.model.parameters() if p.requires_grad]
    for parameter in adapter:
        parameter.data.normal_(std=0.1)
    exact = dtype == "float32"

    together = [ours.train_dataset[at] for at in range(len(packs.rows))]
    batch = ours._prepare_inputs(ours.data_collator(together))
    assert (len(batch["input_ids"]) == 1) == flat
    inputs = {k: v for k, v in batch.items() if k not in ("labels", NUM_TOKENS)}
    ours.model.eval()
    with torch.no_grad(), ours.accelerator.autocast():
        logits = ours.model(**inputs, use_cache=False).logits.float()
        at = 0
        for line, pack in enumerate(together):
            begin = at if flat else 0
            for length in pack[EXAMPLE_LENGTHS]:
                ids = batch["input_ids"][0 if flat else line, begin : begin + length]
                alone = ours.model(input_ids=ids[None], use_cache=False).logits[0].float()
                found = logits[0 if flat else line, begin : begin + length]
                difference = (found - alone).abs().max() / alone.abs().max()
                assert difference <= (1e-5 if exact else 3e-2)
                begin += length
            at = begin

    ours.model.train()
    results = []
    for examples in (rows, ours.train_dataset):
        given = ours.data_collator([examples[row] for row in range(len(examples))])
        [given], count = ours.get_batch_samples(iter([given]), 1, ours.args.device)
        given = ours._prepare_inputs(given)
        with ours.compute_loss_context_manager():
            loss = ours.compute_loss(ours.model, given, num_items_in_batch=count)
        gradient = torch.autograd.grad(loss, adapter)
        results.append((loss.item(), torch.cat([g.flatten().float() for g in gradient])))
    (loss, gradient), (loss_packed, gradient_packed) = results
    assert loss_packed == pytest.approx(loss, rel=1e-6 if exact else 1e-3)
    similarity = functional.cosine_similarity(gradient, gradient_packed, dim=0)
    assert similarity >= (0.99999 if exact else 0.999)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_training_in_packs_learns_and_counts_its_tokens(
    job: TrainingJob, use: Use, implementation: str
) -> None:
    use(implementation)
    worker.train(job)
    result = TrainingResult.model_validate_json(job.result.read_text())
    assert result.final_loss < result.first_loss
    assert result.packs == 5
    # Two batches are an epoch, and fewer than what a step accumulates.
    assert (result.steps, result.epochs) == (6, 6.0)
    assert result.tokens == 6 * sum(LENGTHS)
