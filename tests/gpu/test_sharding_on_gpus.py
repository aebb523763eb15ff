"""The launch files for models in parts, run as the flow runs them. Skipped without two GPUs."""

import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tasks.training import checkpoints, starting
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.settings import TrainingSettings
from tasks.training.spread import Sharding, Spread

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
ROOT = Path(__file__).resolve().parents[2]
WRAPPERS = {
    "none": "DistributedDataParallel",
    "fsdp2": "FSDPPeftModelForCausalLM",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
)


def job(folder: Path, base: Path, sharding: Sharding, processes: int) -> TrainingJob:
    """Four steps on eight rows each, without what rounds differently by chance."""
    ids = [[300 + (row * 31 + at) % 3000 for at in range(40 + row)] for row in range(32)]
    table = pa.table(
        {
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "labels": pa.array([[-100] * 20 + row[20:] for row in ids], pa.list_(pa.int32())),
            "prompt_length": pa.array([20] * 32, pa.int32()),
        }
    )
    for split in ("train", "test"):
        pq.write_table(table, folder / f"{split}.parquet")
    settings = TrainingSettings(
        peft_config={"lora_dropout": 0.0},
        training_config={"optim": "sgd", "learning_rate": 0.5, "logging_steps": 1, "save_steps": 3},
        dtype="float32",
        processes=processes,
        sharding=sharding,
    )
    return TrainingJob(
        base=base,
        base_name="./tiny",
        base_commit=None,
        tokens=folder,
        working=folder / f"{sharding}-{processes}",
        seed=1,
        peft_config=settings.resolved_peft_config(),
        training_config=settings.resolved_training_config(),
        dtype="float32",
        guards={"untrained_base": "allow"},
        processes=processes,
        sharding=sharding,
    )


def run(task: TrainingJob) -> tuple[TrainingResult, str]:
    task.working.mkdir(exist_ok=True)
    path = task.working / "job.json"
    path.write_text(task.model_dump_json(), encoding="utf-8")
    spread = Spread(task.processes, sharding=task.sharding)
    done = subprocess.run(
        starting.worker_command("tasks.training.worker", path, spread),
        env=os.environ | starting.worker_environment(task.processes) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return TrainingResult.model_validate_json(task.result.read_text()), done.stdout


@pytest.mark.parametrize(
    "sharding",
    ["fsdp2", *(pytest.param(name, marks=needs_deepspeed) for name in ("zero2", "zero3"))],
)
def test_parts_on_two_gpus_train_the_adapter_of_one_and_resume(
    sharding: Sharding, tmp_path: Path, tiny_base: Path
) -> None:
    alone, parts = job(tmp_path, tiny_base, "none", 1), job(tmp_path, tiny_base, sharding, 2)
    run(alone)
    result, said = run(parts)
    assert f"Training in 2 processes ({WRAPPERS[sharding]} over " in said
    weights: list[dict[str, Any]] = [
        load_file(j.output / "adapter" / "adapter_model.safetensors") for j in (alone, parts)
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-4), name
    losses = [
        [
            json.loads(line).get("loss")
            for line in (j.output / "history.jsonl").read_text().splitlines()
        ]
        for j in (alone, parts)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    newest = checkpoints.newest_complete(parts.checkpoints)
    assert newest is not None
    for path in sorted(newest.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    newest.rmdir()
    again, _ = run(parts)
    assert again.resumed_from_step == 3
    assert again.adapter_sha256 == result.adapter_sha256
