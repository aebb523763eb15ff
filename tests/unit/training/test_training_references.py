"""What DPO and KTO measure from: the base, bit by bit, which a switched-off adapter must leave."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from tasks.training import engine, fields, loading
from tasks.training.job import TrainingJob
from tasks.training.method_trainer import MethodTrainer
from tasks.training.settings import TrainingSettings
from tests.unit.training.peft_sizes import NEEDS

pytestmark = pytest.mark.long

MakeJob = Callable[..., TrainingJob]
MakeTrainer = Callable[[dict[str, Any]], MethodTrainer]
# PEFT knows it for Llama's kind alone.
TYPES = sorted(set(fields.peft_types()) - {"ADAPTION_PROMPT"})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, end: int) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    draw = random.Random(0)

    def some(low: int, high: int) -> list[int]:
        return [draw.randrange(low, high) for _ in range(draw.randrange(4, 10))]

    rows = []
    for at in range(8):
        prompt, chosen, rejected = some(300, 4000), [*some(300, 400), end], [*some(3900, 4000), end]
        rows.append(
            {
                "id": f"train-{at}",
                "input_ids": prompt + chosen,
                "labels": [-100] * len(prompt) + chosen,
                "prompt_length": len(prompt),
                "rejected_ids": rejected,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    return folder


@pytest.fixture
def trainer(tmp_path: Path, make_job: MakeJob, pairs: Path) -> MakeTrainer:
    """DPO's, with an adapter of this configuration freshly on."""

    def make(peft: dict[str, Any]) -> MethodTrainer:
        settings = TrainingSettings(method="dpo", peft_config=peft)
        job = make_job(
            tmp_path,
            tokens=pairs,
            method="dpo",
            peft_config=settings.resolved_peft_config(),
            training_config=settings.resolved_training_config(),
        )
        rows = engine.read_rows(pairs / "train.parquet")
        return engine.build_trainer(job, rows, loading.choose_precision("float32"))

    return make


def first_loss(ours: MethodTrainer) -> float:
    ours.model.train()
    batch = ours.data_collator([ours.train_dataset[at] for at in range(4)])
    return float(ours.compute_loss(ours.model, batch).detach())


@torch.no_grad()
def reference_after_training(ours: MethodTrainer, base: Path) -> float:
    """How far the switched-off adapter's logits are from the base's once everything trainable has moved."""
    generator = torch.Generator().manual_seed(0)
    for parameter in ours.model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    ids = torch.tensor([ours.train_dataset[0]["prompt_ids"]])
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ours.model.eval()
    with ours.model.disable_adapter():
        logits = ours.model(input_ids=ids, use_cache=False).logits
    return float((logits - plain(input_ids=ids).logits).abs().max())


@pytest.mark.parametrize(
    "peft",
    [
        {},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "eva"},
        {"init_lora_weights": "mica"},
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"modules_to_save": ["norm"]},
        {"target_modules": ["embed_tokens", "qkv_proj"]},
        {"trainable_token_indices": {"embed_tokens": [300, 4092]}},
    ],
    ids=lambda peft: " ".join(f"{name}={value}" for name, value in peft.items()) or "default",
)
def test_an_adapter_that_dpo_takes_begins_at_the_base_and_leaves_it_when_switched_off(
    peft: dict[str, Any], trainer: MakeTrainer, tiny_base: Path
) -> None:
    ours = trainer({"r": 4} | peft)
    assert first_loss(ours) == pytest.approx(math.log(2), abs=1e-5)
    assert reference_after_training(ours, tiny_base) == 0


@pytest.mark.parametrize("name", TYPES)
def test_every_type_leaves_the_base_when_switched_off(
    name: str, trainer: MakeTrainer, tiny_base: Path
) -> None:
    ours = trainer({"peft_type": name} | NEEDS.get(name, {}))
    assert reference_after_training(ours, tiny_base) == 0


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize(
    ("peft", "words"),
    [
        ({"init_lora_weights": "pissa"}, "`pissa` changes the base's weights, .*`method: orpo`"),
        ({"init_lora_weights": "pissa_niter_16"}, "`pissa_niter_16` changes the base's weights"),
        ({"init_lora_weights": "olora"}, "Write `true`, `eva` or `mica`"),
        ({"init_lora_weights": "corda"}, "adapter switched off"),
        ({"init_lora_weights": "lora_ga"}, "adapter switched off"),
        ({"init_lora_weights": "loftq"}, "adapter switched off"),
        ({"kasa_config": {}}, "KaSA cuts the base's smallest directions off"),
        ({"bias": "all"}, "the base's own biases would be trained"),
        ({"bias": "lora_only"}, "Write `none`, or take `method: orpo`"),
        ({"peft_type": "BOFT", "bias": "boft_only"}, "the base's own biases would be trained"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_adapter_that_would_move_the_reference_is_refused_at_its_field(
    method: Any, peft: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words) as refused:
        TrainingSettings(method=method, peft_config=peft)
    [error] = refused.value.errors()
    assert error["loc"] == ("peft_config", list(peft)[-1])
    for other in ("sft", "orpo"):
        TrainingSettings(method=other, peft_config=peft)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_noise_that_would_fall_on_the_reference_too_is_refused(method: Any) -> None:
    with pytest.raises(ValidationError, match="measures from the base, whose answers its noise"):
        TrainingSettings(method=method, training_config={"neftune_noise_alpha": 5})
    TrainingSettings(method="orpo", training_config={"neftune_noise_alpha": 5})
