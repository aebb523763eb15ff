"""QLoRA: 4 bits with double quantization, and 8 bits; on a CPU too where bitsandbytes is installed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import prepare_model_for_kbit_training
from safetensors.torch import load_file
from torch.nn import functional
from transformers import Phi3Config, Phi3ForCausalLM
from transformers.utils import import_utils

from tasks.errors import UserError
from tasks.training import engine, loading, worker
from tasks.training.job import TrainingJob, TrainingResult

MakeJob = Callable[..., TrainingJob]
QUICK = {"max_steps": 3, "warmup_steps": 0}


@pytest.fixture(autouse=True)
def _looked_for_anew() -> None:
    """transformers remembers a library that another test hid."""
    import_utils.is_bitsandbytes_available.cache_clear()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """As wide as two of bitsandbytes' blocks of 64 weights."""
    folder = tmp_path_factory.mktemp("wide-base")
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    Phi3ForCausalLM(config).save_pretrained(folder)
    for path in tiny_base.iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_base_trains_and_the_adapter_comes_back_exactly(
    quantization: str, dtype: str, wide: Path, tmp_path: Path, make_job: MakeJob
) -> None:
    pytest.importorskip("bitsandbytes")
    job = make_job(tmp_path, base=wide, quantization=quantization, dtype=dtype, training=QUICK)
    worker.train(job)
    result = TrainingResult.model_validate_json(job.result.read_text())
    assert result.reload_difference == 0.0
    tensors = load_file(job.output / "adapter" / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert all(t.any() for name, t in tensors.items() if "lora_B" in name)


def test_nf4_is_four_bits_whose_scales_are_quantized_again(wide: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = loading.load_base(wide, loading.choose_precision("float32"), "nf4")
    layer = model.model.layers[0].mlp.down_proj
    assert isinstance(layer, bitsandbytes.nn.Linear4bit)
    state = layer.weight.quant_state
    assert (state.quant_type, state.nested) == ("nf4", True)
    assert layer.weight.numel() * 2 == 128 * 256


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_the_adapter_on_a_quantized_base_learns_in_float32_and_the_base_hands_on_16_bits(
    quantization: str, wide: Path, tmp_path: Path, make_job: MakeJob
) -> None:
    """What a layer takes in is what checkpointing keeps of it."""
    pytest.importorskip("bitsandbytes")
    job = make_job(tmp_path, base=wide, quantization=quantization, dtype="bfloat16", training=QUICK)
    rows = engine.read_rows(job.tokens / "train.parquet")
    made = engine.build_trainer(job, rows, loading.choose_precision("bfloat16"))
    assert {p.dtype for p in made.model.parameters() if p.requires_grad} == {torch.float32}
    made.model.get_base_model().activation_checkpointing_enable()
    taken: list[torch.Tensor] = []
    for layer in made.model.get_base_model().model.layers:
        for module in (layer, layer.mlp):
            module.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    batch = made.data_collator([made.train_dataset[row] for row in range(4)])
    made.model.train()
    with made.compute_loss_context_manager():
        loss = made.compute_loss(made.model, batch)
    loss.backward()
    # Of both layers, and of what is inside them once more in the backward pass.
    assert len(taken) == 6
    assert {hidden.dtype for hidden in taken} == {torch.bfloat16}
    gradients = [p.grad for name, p in made.model.named_parameters() if "lora_B" in name]
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients)


def test_16_bits_on_a_quantized_base_give_the_gradients_of_32(
    wide: Path, tmp_path: Path, make_job: MakeJob
) -> None:
    pytest.importorskip("bitsandbytes")
    found = {}
    for dtype in ("float32", "bfloat16"):
        job = make_job(tmp_path / dtype, base=wide, quantization="nf4", dtype=dtype, training=QUICK)
        rows = engine.read_rows(job.tokens / "train.parquet")
        made = engine.build_trainer(job, rows, loading.choose_precision(dtype))
        made.model.eval()
        batch = made.data_collator([made.train_dataset[row] for row in range(8)])
        with made.compute_loss_context_manager():
            loss = made.compute_loss(made.model, batch)
        names = [p for name, p in made.model.named_parameters() if "lora_B" in name]
        gradients = torch.autograd.grad(loss, names)
        found[dtype] = loss.item(), torch.cat([g.flatten().float() for g in gradients])
    (exact, gradient), (loss_16, gradient_16) = found.values()
    assert loss_16 == pytest.approx(exact, rel=1e-3)
    assert functional.cosine_similarity(gradient, gradient_16, dim=0) > 0.99


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_look_at_a_quantized_base_without_gradients_leaves_those_of_training_as_they_are(
    dtype: Any, wide: Path, tmp_path: Path, make_job: MakeJob
) -> None:
    """An evaluation, the proof that packs are apart, the proof of a start: each runs in between."""
    pytest.importorskip("bitsandbytes")
    peft = {"lora_dropout": 0.0}
    job = make_job(tmp_path, base=wide, quantization="nf4", dtype=dtype, training=QUICK, peft=peft)
    rows = engine.read_rows(job.tokens / "train.parquet")
    made = engine.build_trainer(job, rows, loading.choose_precision(dtype))
    adapter = [p for p in made.model.parameters() if p.requires_grad]
    torch.manual_seed(0)
    for parameter in adapter:
        parameter.data.normal_(std=0.1)
    batch = made.data_collator([made.train_dataset[row] for row in range(8)])

    def gradient() -> torch.Tensor:
        with made.compute_loss_context_manager():
            loss = made.compute_loss(made.model.train(), dict(batch))
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, adapter)])

    before = gradient()
    with torch.no_grad():
        made.model.eval()(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False)
    assert functional.cosine_similarity(gradient(), before, dim=0) > 0.9999


def test_what_a_trainers_class_casts_is_undone_but_for_what_is_trained(wide: Path) -> None:
    """TRL's class for ORPO calls this function of PEFT's for a quantized base."""
    pytest.importorskip("bitsandbytes")
    model = loading.load_base(wide, loading.choose_precision("bfloat16"), "nf4")
    before = [p.dtype for p in model.parameters()]
    formats = loading.formats(model)
    prepare_model_for_kbit_training(model)
    head = model.get_output_embeddings().weight.requires_grad_()
    assert [p.dtype for p in model.parameters()] != before
    loading.keep_formats(formats)
    assert head.dtype is torch.float32
    head.requires_grad_(False)
    loading.keep_formats(formats)
    assert [p.dtype for p in model.parameters()] == before


@pytest.mark.parametrize("start", ["corda", "lora_ga"])
def test_a_start_that_decomposes_the_weights_is_refused_on_a_quantized_base(
    start: str, wide: Path, tmp_path: Path, make_job: MakeJob
) -> None:
    pytest.importorskip("bitsandbytes")
    job = make_job(tmp_path, base=wide, quantization="nf4", peft={"init_lora_weights": start})
    with pytest.raises(
        UserError, match=f"{start} decomposes the base's weights, which training.qu"
    ):
        worker.train(job)
