"""What PEFT computes with the converted adapter is what loralib's own modules compute."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

C_ATTN = [f"transformer.h.{layer}.attn.c_attn" for layer in (0, 1)]
ROUNDING = {"rtol": 1e-5, "atol": 2e-5}


def _same(bench: Any, adapter: Any, model: Any) -> None:
    """Equal unmerged and merged, and far from the base."""
    loaded = bench.load(adapter)
    wanted = bench.logits(model.train())
    torch.testing.assert_close(bench.logits(loaded), wanted, **ROUNDING)
    # loralib merges in eval mode.
    merged = bench.logits(model.eval())
    torch.testing.assert_close(bench.logits(loaded.merge_and_unload()), merged, **ROUNDING)
    assert (wanted - bench.logits(bench.model)).abs().max() > 0.05


@pytest.mark.parametrize(
    "enable_lora",
    [
        [True],
        [True, False, True],
        [False, True, False],
        [False, False, True],
        [True, True, True],
        [True, True, False, True],
        [False, True],
    ],
)
def test_merged_linear_of_gpt2_for_every_pattern_of_blocks(text: Any, enable_lora: Any) -> None:
    arguments = {"r": 3, "lora_alpha": 7, "enable_lora": enable_lora}
    model = text.adapted(dict.fromkeys(C_ATTN, arguments))
    adapter = text.to_peft(
        text.save(model), r=3, alpha=7, modules={"attn.c_attn": {"enable_lora": enable_lora}}
    )
    _same(text, adapter, model)


def test_the_change_is_exactly_zero_in_blocks_that_are_not_enabled(text: Any) -> None:
    model = text.adapted({C_ATTN[0]: {"r": 2, "lora_alpha": 4, "enable_lora": [True, False, True]}})
    adapter = text.to_peft(
        text.save(model), r=2, alpha=4, modules={"c_attn": {"enable_lora": [True, False, True]}}
    )
    merged = text.load(adapter).merge_and_unload()
    before, after = (m.get_submodule(C_ATTN[0]).weight for m in (text.model, merged))
    assert torch.equal(before[:, 12:24], after[:, 12:24])
    assert (before != after)[:, :12].all()
    assert (before != after)[:, 24:].all()


def test_all_kinds_of_gpt2_with_unequal_ranks_and_alphas(text: Any) -> None:
    model = text.adapted(
        {
            C_ATTN[0]: {"r": 4, "lora_alpha": 16, "enable_lora": [True, False, True]},
            C_ATTN[1]: {"r": 2, "lora_alpha": 3, "enable_lora": [False, True, True]},
            "transformer.h.1.mlp.c_fc": {"r": 5, "lora_alpha": 16},
            "transformer.h.0.attn.c_proj": {"r": 4, "lora_alpha": 0.5},
            "transformer.wte": {"r": 6, "lora_alpha": 9},
            "transformer.wpe": {"r": 4, "lora_alpha": 16},
        }
    )
    told = {
        C_ATTN[0]: {"enable_lora": [True, False, True]},
        "h.1.attn.c_attn": {"r": 2, "alpha": 3, "enable_lora": [False, True, True]},
        "c_fc": {"r": 5},
        "attn.c_proj": {"alpha": 0.5},
        "wte": {"r": 6, "alpha": 9},
    }
    adapter = text.to_peft(text.save(model), r=4, alpha=16, modules=told)
    loaded = text.load(adapter)
    # loralib's embedding shares its table with the head; PEFT's copy of the base does, too.
    model.lm_head.weight = model.transformer.wte.weight
    torch.testing.assert_close(text.logits(loaded), text.logits(model), **ROUNDING)
    merged = text.logits(loaded.merge_and_unload())
    torch.testing.assert_close(merged, text.logits(model.eval()), **ROUNDING)


def test_conv_and_linear_layers_of_a_vision_model(pictures: Any) -> None:
    convolution = "vit.embeddings.patch_embeddings.projection"
    linears = [n for n, m in pictures.model.named_modules() if n.endswith(("q_proj", "query"))]
    assert linears
    model = pictures.adapted(
        {
            convolution: {"r": 2, "lora_alpha": 5},
            **{name: {"r": 3, "lora_alpha": 6} for name in linears},
            "classifier": {"r": 1, "lora_alpha": 6},
        }
    )
    told = {convolution: {"r": 2, "alpha": 5}, "classifier": {"r": 1}}
    adapter = pictures.to_peft(pictures.save(model), r=3, alpha=6, modules=told)
    _same(pictures, adapter, model)
    config = json.loads((adapter / "adapter_config.json").read_text())
    # 2 * 3 * 3: the rank of a convolution's change grows with its kernel, and alpha with it.
    assert config["rank_pattern"]["projection"] == 18
    assert config["alpha_pattern"]["projection"] == 45


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_with_stride_and_padding(residual: Any, kernel: int) -> None:
    bench = residual
    chosen = {
        name: {"r": 2, "lora_alpha": 3}
        for name, module in bench.model.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (kernel, kernel)
    }
    assert len(chosen) > 1
    model = bench.adapted(chosen)
    adapter = bench.to_peft(bench.save(model), r=2, alpha=3)
    # Batch normalisation learns in train mode: loralib's merging is switched apart from it.
    model.eval()
    merged = bench.logits(model)
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.train()
    loaded = bench.load(adapter)
    torch.testing.assert_close(bench.logits(loaded), bench.logits(model), **ROUNDING)
    torch.testing.assert_close(bench.logits(loaded.merge_and_unload()), merged, **ROUNDING)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_trained_biases_of_every_mode(text: Any, bias: str) -> None:
    arguments = {"r": 2, "lora_alpha": 4, "enable_lora": [True, False, True]}
    model = text.adapted({**dict.fromkeys(C_ATTN, arguments)}, bias)
    checkpoint = text.save(model, bias)
    adapter = text.to_peft(
        checkpoint, r=2, alpha=4, modules={"c_attn": {"enable_lora": [True, False, True]}}
    )
    assert json.loads((adapter / "adapter_config.json").read_text())["bias"] == bias
    _same(text, adapter, model)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_trained_biases_of_convolutions(pictures: Any, bias: str) -> None:
    layers = {
        "vit.embeddings.patch_embeddings.projection": {"r": 2, "lora_alpha": 5},
        "classifier": {"r": 2, "lora_alpha": 5},
    }
    model = pictures.adapted(layers, bias)
    adapter = pictures.to_peft(pictures.save(model, bias), r=2, alpha=5)
    _same(pictures, adapter, model)


def test_scaling_is_the_same_number(text: Any) -> None:
    arguments = {"r": 3, "lora_alpha": 7, "enable_lora": [True, False, True]}
    model = text.adapted({C_ATTN[0]: arguments})
    adapter = text.to_peft(
        text.save(model), r=3, alpha=7, modules={"c_attn": {"enable_lora": [True, False, True]}}
    )
    loaded = text.load(adapter)
    assert loaded.base_model.model.get_submodule(C_ATTN[0]).scaling == {"default": 7 / 3}
    assert model.get_submodule(C_ATTN[0]).scaling == 7 / 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_tensors_keep_their_dtype(text: Any, dtype: torch.dtype) -> None:
    model = text.adapted({C_ATTN[0]: {"r": 2, "lora_alpha": 4, "enable_lora": [True]}})
    model.get_submodule(C_ATTN[0]).to(dtype)
    adapter = text.to_peft(
        text.save(model), r=2, alpha=4, modules={"c_attn": {"enable_lora": [True]}}
    )
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}


def test_auto_peft_model_finds_the_base_by_the_folder_alone(text: Any) -> None:
    from peft import AutoPeftModelForCausalLM

    model = text.adapted({C_ATTN[0]: {"r": 2, "lora_alpha": 4, "enable_lora": [True]}})
    adapter = text.to_peft(
        text.save(model), r=2, alpha=4, modules={"c_attn": {"enable_lora": [True]}}
    )
    loaded = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
    torch.testing.assert_close(text.logits(loaded), text.logits(model), **ROUNDING)


def test_a_name_that_ends_like_another_adapts_only_the_one_that_was_trained(text: Any) -> None:
    """`attn.c_proj` and `mlp.c_proj` end alike, and one of four is adapted."""
    model = text.adapted({"transformer.h.1.mlp.c_proj": {"r": 2, "lora_alpha": 4}})
    adapter = text.to_peft(text.save(model), r=2, alpha=4)
    _same(text, adapter, model)
