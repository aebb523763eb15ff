"""What `loraline check` is told about a training."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import Phi3Config

from tasks.artifacts import Tokens
from tasks.base import Base
from tasks.errors import UserError
from tasks.home import Home
from tasks.methods import Method
from tasks.training import inspect_worker, loading
from tasks.training.inspection import inspect_training
from tasks.training.job import InspectionJob
from tasks.training.settings import TrainingSettings

pytestmark = pytest.mark.slow

PHI3_MINI = Phi3Config(
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    vocab_size=32064,
)
END = 4092
LINEAR = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


@pytest.fixture
def phi3_mini(tmp_path: Path) -> Path:
    PHI3_MINI.save_pretrained(tmp_path / "phi-3-mini")
    return tmp_path / "phi-3-mini"


def job(base: Path, peft_config: dict[str, Any], **changes: Any) -> InspectionJob:
    settings = TrainingSettings(peft_config=peft_config)
    values: dict[str, Any] = {
        "base": base,
        "base_name": "microsoft/Phi-3-mini-4k-instruct",
        "working": base,
        "rows": 1000,
        "longest": 2048,
        "longest_answer": 512,
        "peft_config": settings.resolved_peft_config(),
        "training_config": settings.resolved_training_config() | {"per_device_train_batch_size": 2},
    }
    return InspectionJob(**(values | changes))


@pytest.mark.parametrize("targets", [LINEAR, "all-linear"])
def test_rank_16_on_all_linear_layers_of_phi_3_mini_trains_25_165_824_parameters(
    phi3_mini: Path, targets: Any
) -> None:
    model = inspect_worker.adapted_without_weights(
        job(phi3_mini, {"r": 16, "target_modules": targets})
    )
    trainable, total = model.get_nb_trainable_parameters()
    assert trainable == 25_165_824
    assert total - trainable == 3_821_079_552
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_memory_of_phi_3_mini_is_estimated_within_what_is_known_of_it(phi3_mini: Path) -> None:
    task = job(phi3_mini, {"r": 16})
    config = inspect_worker.adapted_without_weights(task).config
    half = loading.Precision(loading.torch.bfloat16, "bf16", "")
    plain = inspect_worker.memory_estimate(config, task, half, 25_165_824, 3_846_245_376)
    assert plain["base"] == 2 * 3_821_079_552
    assert plain["adapter"] + plain["optimizer"] == 16 * 25_165_824
    # About 3 MB of saved activations per token, by the arithmetic of NVIDIA's and TRL's pages.
    assert 2e6 < plain["activations"] / (2 * 2048) < 6e6
    assert plain["total"] == sum(size for name, size in plain.items() if name != "total")

    recomputed = task.model_copy(
        update={"training_config": task.training_config | {"activation_checkpointing": True}}
    )
    less = inspect_worker.memory_estimate(config, recomputed, half, 25_165_824, 3_846_245_376)
    assert less["activations"] < plain["activations"] / 4

    quantized = task.model_copy(update={"quantization": "nf4"})
    small = inspect_worker.memory_estimate(config, quantized, half, 25_165_824, 3_846_245_376)
    assert 2e9 < small["base"] < 3e9


def test_split_projections_are_refused_by_a_check_too(phi3_mini: Path) -> None:
    with pytest.raises(UserError, match="calls q_proj, v_proj: qkv_proj"):
        inspect_worker.adapted_without_weights(
            job(phi3_mini, {"target_modules": ["q_proj", "v_proj"]})
        )


def test_an_inspection_measures_a_small_model_and_leaves_nothing(
    settings: TrainingSettings, base: Base, tokens: Tokens, home: Home
) -> None:
    found = inspect_training(settings, base=base, tokens=tokens, home=home)
    assert found.trainable_parameters == 3328
    assert found.steps == 14
    assert found.target_modules == dict.fromkeys(sorted(LINEAR), 2)
    assert found.seconds is not None
    assert 0 < found.seconds < 600
    assert found.memory_bytes["base"] == 4 * (found.total_parameters - 3328)
    assert not list(home.work.iterdir())


@pytest.mark.parametrize(("method", "steps"), [("dpo", 3), ("orpo", 3), ("kto", 6)])
def test_pairs_are_measured_with_both_answers(
    method: Method, steps: int, base: Base, home: Home, tmp_path: Path
) -> None:
    rows = [
        {
            "id": str(at),
            "input_ids": [*range(300, 310), 400 + at, END],
            "labels": [-100] * 10 + [400 + at, END],
            "prompt_length": 10,
            "rejected_ids": [*range(500, 520 + at), END],
            "desirable": None,
        }
        for at in range(12)
    ]
    for side in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{side}.parquet")
    counts = {"train": 12, "test": 12}
    tokens = Tokens(
        path=tmp_path, fingerprint="0", reused=False, seconds=0,
        rows=counts, tokens=counts, trained_tokens=counts,
    )  # fmt: skip
    settings = TrainingSettings(
        method=method,
        training_config={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
        dtype="float32",
    )
    found = inspect_training(settings, base=base, tokens=tokens, home=home)
    assert found.steps == steps
    assert found.seconds is not None
    assert 0 < found.seconds < 600


def test_what_peft_refuses_is_told_in_words(phi3_mini: Path) -> None:
    refused = job(phi3_mini, {"peft_type": "IA3"})
    with pytest.raises(UserError, match="PEFT or TRL refuses section `training`"):
        inspect_worker.adapted_without_weights(refused)
