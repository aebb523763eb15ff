"""Training on a GPU: the same code, another device. Skipped where there is none."""

import importlib.util
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.settings import TrainingSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def job(tmp_path: Path, base: Path, **changes: Any) -> TrainingJob:
    ids = [[300 + (row * 31 + at) % 3000 for at in range(64)] for row in range(32)]
    table = pa.table(
        {
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "labels": pa.array([[-100] * 32 + row[32:] for row in ids], pa.list_(pa.int32())),
            "prompt_length": pa.array([32] * 32, pa.int32()),
        }
    )
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    settings = TrainingSettings(training_config={"learning_rate": 1e-2, "logging_steps": 1})
    values: dict[str, Any] = {
        "base": base,
        "base_name": "./tiny",
        "base_commit": None,
        "tokens": tmp_path,
        "working": tmp_path / "working",
        "seed": 1,
        "peft_config": settings.resolved_peft_config(),
        "training_config": settings.resolved_training_config(),
        "guards": {"untrained_base": "allow"},
    }
    return TrainingJob(**(values | changes))


def train(task: TrainingJob) -> TrainingResult:
    from tasks.training import worker

    worker.train(task)
    return TrainingResult.model_validate_json(task.result.read_text())


def test_training_uses_bfloat16_where_the_gpu_has_it_and_learns(
    tmp_path: Path, tiny_base: Path
) -> None:
    result = train(job(tmp_path, tiny_base))
    assert torch.cuda.get_device_name() in result.device
    assert result.dtype == ("bfloat16" if torch.cuda.is_bf16_supported() else "float32")
    assert result.final_loss < result.first_loss
    assert result.peak_memory_bytes > 0


@needs_bitsandbytes
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_base_trains_and_its_adapter_reloads(
    tmp_path: Path, tiny_base: Path, quantization: str
) -> None:
    result = train(job(tmp_path, tiny_base, quantization=quantization))
    assert result.final_loss < result.first_loss
