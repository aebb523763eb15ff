"""Training some blocks of a fused projection: the other rows are the base's, bit by bit."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    MptConfig,
    Phi3Config,
)

from tasks.errors import StageFailed, UserError
from tasks.training import engine, inspect_worker, loading, method_trainer, slicing, worker
from tasks.training.fused import blocks_of, fused_modules
from tasks.training.job import InspectionJob, TrainingJob, TrainingResult
from tasks.training.settings import TrainingSettings

pytestmark = pytest.mark.slow

MakeJob = Callable[..., TrainingJob]
SLICES = {"qkv_proj": ["q", "v"], "gate_up_proj": ["up"]}
# Of the tiny base: 4 heads of 8 and 2 of keys and values; 64 wide inside.
TRAINED = {"qkv_proj": [*range(32), *range(48, 64)], "gate_up_proj": [*range(64, 128)]}
ROWS = {"qkv_proj": 64, "gate_up_proj": 128}
TINY: dict[str, Any] = {
    "phi3": Phi3Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "glm": GlmConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, pad_token_id=0, eos_token_id=2,
    ),
    "glm4": Glm4Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, pad_token_id=0, eos_token_id=2,
    ),
    "gpt2": GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=4, n_positions=64),
    "mpt": MptConfig(vocab_size=50, d_model=32, n_layers=1, n_heads=4, max_seq_len=64),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def train(job: TrainingJob) -> TrainingResult:
    worker.train(job)
    return TrainingResult.model_validate_json(job.result.read_text())


@pytest.mark.parametrize("kind", sorted(TINY))
def test_blocks_are_what_they_are_called(kind: str) -> None:
    """Told by what scaling their rows does: v and up scale the output, q and k its softmax alike."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TINY[kind]).eval()
    config = model.config.to_dict()
    for module, names in fused_modules(config).items():
        blocks = blocks_of(config, module)
        assert blocks is not None
        assert list(blocks) == names
        fused = next(m for n, m in model.named_modules() if n.endswith(f".{module}"))
        rows = fused.weight.shape[1 if kind == "gpt2" else 0]
        assert [*range(rows)] == [row for block in blocks.values() for row in block]
        linear = {"v", "up"} & set(blocks)
        for name, block in blocks.items():
            plain = _last_input(model, fused, {})
            scaled = _last_input(model, fused, dict.fromkeys(block, 2.0))
            # A block that enters linearly doubles what comes behind it, no other block does.
            assert torch.allclose(2 * plain, scaled, atol=1e-6) == (name in linear), name
        if kind == "phi3" and "q" in blocks:
            assert len(blocks["q"]) == 2 * len(blocks["k"])


def _last_input(model: Any, fused: Any, scale: dict[int, float]) -> torch.Tensor:
    """What reaches the projection after the fused one, with rows of its output scaled."""
    seen: list[torch.Tensor] = []

    def scaled(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        factors = torch.ones(output.shape[-1])
        for row, factor in scale.items():
            factors[row] = factor
        return output * factors

    names = ("o_proj", "down_proj", "c_proj", "out_proj")
    parent = next(m for m in model.modules() if fused in list(m.children()))
    following = next(m for n, m in parent.named_children() if n in names)
    handles = [
        fused.register_forward_hook(scaled),
        following.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone())),
    ]
    with torch.no_grad():
        model(input_ids=torch.arange(3, 19)[None])
    for handle in handles:
        handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bfloat16"},
        {"training": {"weight_decay": 0.5, "optim": "adamw_torch"}},
        {"training": {"weight_decay": 0.5, "optim": "rmsprop"}},
        {"training": {"optim": "adafactor"}},
        {"training": {"optim": "sgd"}, "peft": {"use_rslora": True}},
        {"peft": {"init_lora_weights": "eva", "lora_dropout": 0.0}},
        {"loraplus_lr_ratio": 8.0},
    ],
    ids=str,
)
def test_the_merged_delta_is_zero_outside_the_slices_and_only_there(
    changes: dict[str, Any], tmp_path: Path, make_job: MakeJob
) -> None:
    job = make_job(tmp_path, target_slices=SLICES, **changes)
    job = job.model_copy(
        update={"training_config": job.training_config | {"max_steps": 6, "warmup_steps": 0}}
    )
    train(job)
    # Plain PEFT, merged: what an inference server would make of the adapter.
    base = AutoModelForCausalLM.from_pretrained(job.base, dtype="float32")
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    merged = PeftModel.from_pretrained(base, job.output / "adapter").merge_and_unload()
    seen = set()
    for name, after in merged.named_parameters():
        module = name.split(".")[-2]
        changed = (after != before[name]).any(dim=-1).nonzero().flatten().tolist()
        if module in TRAINED:
            assert changed == TRAINED[module], name
            seen.add(module)
        elif module in ("o_proj", "down_proj"):
            assert len(changed) == len(after)
    assert seen == set(SLICES)


def test_parameters_are_predicted_and_counted_as_they_are_trained(
    tmp_path: Path, make_job: MakeJob
) -> None:
    job = make_job(
        tmp_path,
        target_slices=SLICES,
        training={"max_steps": 2, "warmup_steps": 0},
        peft={"target_modules": ["qkv_proj", "gate_up_proj"]},
    )
    # Rank 4, two layers: A of 32 in, B of the trained rows.
    trained = 2 * 4 * (32 + len(TRAINED["qkv_proj"]) + 32 + len(TRAINED["gate_up_proj"]))
    assert train(job).trainable_parameters == trained
    inspection = InspectionJob(
        **job.model_dump(include={"base", "base_name", "peft_config", "training_config"}),
        target_slices=SLICES,
        working=tmp_path,
        rows=26,
        longest=40,
        longest_answer=20,
    )
    model = inspect_worker.adapted_without_weights(inspection)
    whole = model.get_nb_trainable_parameters()[0]
    assert whole - slicing.untrained_parameters(model, SLICES, "tiny") == trained


def test_a_training_that_goes_on_gives_the_same_bytes_and_the_same_zeros(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(make_job(tmp_path / "whole", target_slices=SLICES))
    job = make_job(tmp_path / "parts", target_slices=SLICES)

    def emit(event: str, **values: Any) -> None:
        if event == "step" and values["step"] == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(method_trainer, "emit", emit)
        with pytest.raises(SystemExit):
            worker.train(job)
    result = train(job)
    assert result.resumed_from_step == 5
    assert result.adapter_sha256 == whole.adapter_sha256
    for name, tensor in load_file(job.output / "adapter" / "adapter_model.safetensors").items():
        module = name.split(".")[-3]
        if "lora_B" in name and module in TRAINED:
            others = sorted(set(range(ROWS[module])) - set(TRAINED[module]))
            assert not tensor[others].any()
            assert tensor[TRAINED[module]].any()


def test_neither_gradients_nor_moments_know_the_other_rows(
    tmp_path: Path, make_job: MakeJob
) -> None:
    job = make_job(tmp_path, target_slices=SLICES, training={"max_steps": 2})
    rows = engine.read_rows(job.tokens / "train.parquet")
    made = engine.build_trainer(job, rows, loading.choose_precision("float32"))
    made.train()
    for name, parameter in made.model.named_parameters():
        module = name.split(".")[-4]
        if "lora_B" in name and module in TRAINED:
            others = sorted(set(range(ROWS[module])) - set(TRAINED[module]))
            for moment in ("exp_avg", "exp_avg_sq"):
                assert not made.optimizer.state[parameter][moment][others].any()


def test_a_row_that_was_changed_all_the_same_publishes_nothing(
    tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slicing, "_without", lambda rows: lambda gradient: gradient)
    monkeypatch.setattr(slicing.TrainedRows, "on_step_end", lambda *_, **__: None)
    job = make_job(tmp_path, target_slices=SLICES, training={"max_steps": 2, "warmup_steps": 0})
    with pytest.raises(StageFailed, match=r"outside training\.target_slices were changed"):
        worker.train(job)
    assert not job.result.exists()


@pytest.mark.parametrize(
    ("slices", "words"),
    [
        ({"qkv_proj": ["q", "w"]}, "`qkv_proj` of ../examples/tiny has no block w; it has q, k, v"),
        ({"o_proj": ["q"]}, "`o_proj` is not a fused projection .*`qkv_proj` .q, k, v.; `gate_up"),
        ({"q_proj": ["q"]}, "`q_proj` is not a fused projection"),
    ],
)
def test_a_slice_that_the_model_does_not_have_is_refused(
    slices: dict[str, list[str]], words: str, tmp_path: Path, make_job: MakeJob
) -> None:
    with pytest.raises(UserError, match=words):
        worker.train(make_job(tmp_path, target_slices=slices))


def test_a_slice_of_a_module_without_adapter_is_refused(tmp_path: Path, make_job: MakeJob) -> None:
    job = make_job(tmp_path, target_slices=SLICES, peft={"target_modules": ["gate_up_proj"]})
    with pytest.raises(UserError, match="`qkv_proj` gets no adapter"):
        worker.train(job)


def test_sizes_come_from_the_config_and_interleaved_layouts_are_not_guessed() -> None:
    config = {"model_type": "phi3", "hidden_size": 32, "num_attention_heads": 4}
    thirds = {"q": range(32), "k": range(32, 64), "v": range(64, 96)}
    assert blocks_of(config, "qkv_proj") == thirds
    assert blocks_of(config | {"num_key_value_heads": None}, "qkv_proj") == thirds
    wide = {"q": range(64), "k": range(64, 80), "v": range(80, 96)}
    assert blocks_of(config | {"num_key_value_heads": 1, "head_dim": 16}, "qkv_proj") == wide
    assert blocks_of(config | {"model_type": "falcon"}, "query_key_value") is None


@pytest.mark.parametrize(
    ("peft", "words"),
    [
        ({"use_dora": True}, "use_dora: true. each row has a magnitude"),
        ({"peft_type": "VERA"}, "peft_type is VERA"),
        ({"init_lora_weights": "pissa"}, "every row of B starts with numbers"),
        ({"init_lora_weights": False}, "every row of B starts with numbers"),
        ({"lora_bias": True}, "each row has a bias"),
        ({"bias": "all"}, "each row's bias"),
    ],
)
def test_an_adapter_that_would_change_other_rows_is_refused(
    peft: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        TrainingSettings(peft_config=peft, target_slices=SLICES)


def test_slices_and_rates_count_as_content_and_their_absence_does_not() -> None:
    plain = TrainingSettings().content()
    assert "target_slices" not in plain
    assert "loraplus_lr_ratio" not in plain
    sliced = TrainingSettings(target_slices={"qkv_proj": ["v", "q"]}).content()
    assert sliced == plain | {"target_slices": {"qkv_proj": ["q", "v"]}}
    with pytest.raises(ValidationError, match="names no block"):
        TrainingSettings(target_slices={"qkv_proj": []})
