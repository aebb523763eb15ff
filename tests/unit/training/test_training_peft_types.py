"""Every PEFT method for causal language models that a recipe can name: it trains, and comes back as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tasks.errors import UserError
from tasks.training import engine, fields, inspect_worker, worker
from tasks.training.job import InspectionJob, TrainingJob, TrainingResult
from tasks.training.settings import TrainingSettings
from tests.unit.training.peft_sizes import NEEDS

pytestmark = pytest.mark.slow

MakeJob = Callable[..., TrainingJob]
QUICK = {
    "max_steps": 2,
    "warmup_steps": 0,
    "train_sampling_strategy": "sequential",
    "lr_scheduler_type": "constant",
    "learning_rate": 5e-2,
}
REFUSED = fields.unsupported_peft_types()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        eos_token_id=2,
        bos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in tiny_base.iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_the_types_are_peft_s_own() -> None:
    assert {t.value for t in PEFT_TYPE_TO_CONFIG_MAPPING} == {*fields.peft_types(), *REFUSED}


@pytest.mark.parametrize("name", fields.peft_types())
def test_a_type_trains_saves_reloads_and_changes_the_model(
    name: str, tmp_path: Path, make_job: MakeJob, tiny_llama: Path
) -> None:
    settings = TrainingSettings(peft_config={"peft_type": name} | NEEDS.get(name, {}))
    task = make_job(tmp_path, training=QUICK, peft_config=settings.resolved_peft_config())
    if name == "ADAPTION_PROMPT":
        # PEFT knows it for Llama's kind alone.
        task = task.model_copy(update={"base": tiny_llama})
    worker.train(task)
    result = TrainingResult.model_validate_json(task.result.read_text())
    assert result.reload_difference < 1e-5
    assert result.trainable_parameters == _predicted(task)
    ids = json.loads((task.output / "fixture.json").read_text())["input_ids"][0]
    expected = load_file(task.output / "fixture.safetensors")["logits"][0]
    plain = AutoModelForCausalLM.from_pretrained(task.base, dtype="float32").eval()
    row = engine.read_rows(task.tokens / "train.parquet")[0]["input_ids"]
    before = _last_logits(plain, row)
    # What the registry hands out is loaded by PEFT alone.
    adapted = PeftModel.from_pretrained(plain, task.output / "adapter").eval()
    assert torch.allclose(_last_logits(adapted, ids), expected, atol=1e-5)
    assert (_last_logits(adapted, row) - before).abs().max() > 1e-4


@torch.no_grad()
def _last_logits(model: Any, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -4:]
    return logits


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_type_that_cannot_be_trained_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} is not supported: it "):
        TrainingSettings(peft_config={"peft_type": name})


@pytest.mark.parametrize(
    "peft",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {
            "rank_pattern": {"qkv_proj": 2, "layers.1.mlp.down_proj": 8},
            "alpha_pattern": {"o_proj": 3},
        },
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"modules_to_save": ["norm"]},
        {"target_modules": ["embed_tokens", "qkv_proj"]},
        {"trainable_token_indices": {"embed_tokens": [300, 4092]}},
        {"bias": "lora_only"},
        {"layers_to_transform": [1], "target_modules": ["qkv_proj", "o_proj"]},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"lora_dropout": 0.1, "use_dora": True},
    ],
    ids=lambda peft: " ".join(f"{name}={value}" for name, value in peft.items())[:60],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_kind_of_lora_trains_and_reloads(
    peft: dict[str, Any], dtype: str, tmp_path: Path, make_job: MakeJob
) -> None:
    settings = TrainingSettings(peft_config={"r": 4} | peft)
    task = make_job(
        tmp_path, training=QUICK, peft_config=settings.resolved_peft_config(), dtype=dtype
    )
    worker.train(task)
    result = TrainingResult.model_validate_json(task.result.read_text())
    assert result.trainable_parameters == _predicted(task)
    assert result.reload_difference < (1e-5 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize(
    ("peft", "words"),
    [
        ({"rank_pattern": {"q_proj": 8}}, r"rank_pattern: `q_proj` matches no module .*qkv_proj"),
        ({"alpha_pattern": {"qkv_proj": 8, "up": 2}}, "alpha_pattern: `up` matches no module"),
        ({"modules_to_save": ["lm_head", "score"]}, "modules_to_save: `score` matches no module"),
        ({"exclude_modules": ["down_proj", "v_proj"]}, "exclude_modules: `v_proj` matches no"),
        ({"exclude_modules": "visual.*"}, r"exclude_modules: `visual\.\*` matches no target"),
        (
            {"layers_to_transform": [0, 7], "target_modules": ["qkv_proj"]},
            "layers_to_transform: the model has no layer 7; .* are 0 to 1",
        ),
    ],
)
def test_an_entry_that_matches_nothing_is_refused_however_many_match(
    peft: dict[str, Any], words: str, tmp_path: Path, make_job: MakeJob
) -> None:
    with pytest.raises(UserError, match=words):
        worker.train(make_job(tmp_path, peft=peft))


def _predicted(task: TrainingJob) -> int:
    job = InspectionJob(
        **task.model_dump(include={"base", "base_name", "peft_config", "training_config"}),
        working=task.working,
        rows=26,
        longest=40,
        longest_answer=20,
    )
    count: int = inspect_worker.adapted_without_weights(job).get_nb_trainable_parameters()[0]
    return count
