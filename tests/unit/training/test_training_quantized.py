"""QLoRA: 4 bits with double quantization, and 8 bits; on a CPU too where bitsandbytes is installed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
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


def test_the_adapter_on_a_quantized_base_learns_in_float32(
    wide: Path, tmp_path: Path, make_job: MakeJob
) -> None:
    pytest.importorskip("bitsandbytes")
    job = make_job(tmp_path, base=wide, quantization="nf4", dtype="bfloat16", training=QUICK)
    rows = engine.read_rows(job.tokens / "train.parquet")
    made = engine.build_trainer(job, rows, loading.choose_precision("bfloat16"))
    assert {p.dtype for p in made.model.parameters() if p.requires_grad} == {torch.float32}


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
