"""A loralib checkpoint comes back from PEFT bit for bit; what loralib cannot express is refused by name."""

import copy
import json
from dataclasses import replace
from typing import Any

import loralib
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tasks.errors import UserError

BLOCKS = [True, False, True]
C_ATTN = [f"transformer.h.{layer}.attn.c_attn" for layer in (0, 1)]
LAYERS = {
    C_ATTN[0]: {"r": 4, "lora_alpha": 16, "enable_lora": BLOCKS},
    C_ATTN[1]: {"r": 3, "lora_alpha": 0.1, "enable_lora": [True, True, True]},
    "transformer.h.1.mlp.c_fc": {"r": 4, "lora_alpha": 16},
    "transformer.wte": {"r": 4, "lora_alpha": 16},
}
TOLD: dict[str, Any] = {
    "r": 4,
    "alpha": 16,
    "modules": {
        C_ATTN[0]: {"enable_lora": BLOCKS},
        C_ATTN[1]: {"r": 3, "alpha": 0.1, "enable_lora": [True, True, True]},
    },
}


def _bit_equal(path: Any, other: Any) -> None:
    first, second = (torch.load(p, weights_only=True) for p in (path, other))
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_gpt2_comes_back_bit_for_bit_without_a_flag(text: Any, bias: str) -> None:
    checkpoint = text.save(text.adapted(LAYERS, bias), bias)
    _bit_equal(checkpoint, text.back(text.to_peft(checkpoint, **TOLD)))


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_a_convolution_comes_back_bit_for_bit(pictures: Any, bias: str) -> None:
    layers = {
        "vit.embeddings.patch_embeddings.projection": {"r": 2, "lora_alpha": 5},
        "classifier": {"r": 1, "lora_alpha": 5},
    }
    checkpoint = pictures.save(pictures.adapted(layers, bias), bias)
    told = {"r": 2, "alpha": 5, "modules": {"classifier": {"r": 1}}}
    _bit_equal(checkpoint, pictures.back(pictures.to_peft(checkpoint, **told)))


def test_the_checkpoint_that_comes_back_loads_into_loralibs_model(text: Any) -> None:
    trained = text.adapted(LAYERS)
    back = text.back(text.to_peft(text.save(trained), **TOLD))
    torch.manual_seed(9)
    fresh = text.adapted(LAYERS)
    for name, parameter in fresh.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    found = fresh.load_state_dict(torch.load(back, weights_only=True), strict=False)
    assert not found.unexpected_keys
    assert not [key for key in found.missing_keys if "lora_" in key]
    assert torch.equal(text.logits(fresh), text.logits(trained))


def test_wrapper_container_and_order_come_back(text: Any) -> None:
    """As loralib's own GPT-2 example saves it: under DistributedDataParallel, in a dictionary."""
    tensors = loralib.lora_state_dict(text.adapted(LAYERS))
    wrapped = {f"module.{name}": tensors[name] for name in reversed(list(tensors))}
    checkpoint = text.folder / "wrapped.pt"
    torch.save({"model_state_dict": wrapped, "step": 7}, checkpoint)
    done = text.convert(checkpoint, **TOLD)
    assert any("left out: step" in note for note in done.notes)
    back = torch.load(text.back(text.folder / "adapter"), weights_only=True)
    assert list(back) == ["model_state_dict"]
    assert list(back["model_state_dict"]) == list(wrapped)
    assert all(torch.equal(back["model_state_dict"][name], wrapped[name]) for name in wrapped)


def test_safetensors_both_ways(text: Any) -> None:
    tensors = dict(loralib.lora_state_dict(text.adapted(LAYERS)))
    checkpoint = text.folder / "lora.safetensors"
    save_file(tensors, checkpoint)
    back = load_file(text.back(text.to_peft(checkpoint, **TOLD), "back.safetensors"))
    assert set(back) == set(tensors)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_what_comes_back_needs_no_flags_to_go_again(text: Any) -> None:
    adapter = text.to_peft(text.save(text.adapted(LAYERS, "all"), "all"), **TOLD)
    again = text.to_peft(text.back(adapter), "again", base=None)
    first, second = (load_file(f / "adapter_model.safetensors") for f in (adapter, again))
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    configs = [json.loads((f / "adapter_config.json").read_text()) for f in (adapter, again)]
    assert configs[0] == configs[1]


def test_the_record_says_once_what_is_alike(text: Any) -> None:
    told = {"r": 4, "alpha": 16, "modules": {"c_attn": {"enable_lora": BLOCKS}}}
    layer = {"r": 4, "lora_alpha": 16, "enable_lora": BLOCKS}
    adapter = text.to_peft(text.save(text.adapted(dict.fromkeys(C_ATTN, layer))), **told)
    record = json.loads((adapter / "loralib.json").read_text())
    assert record["modules"] == {"c_attn": {"enable_lora": BLOCKS}}


def test_a_sidecar_that_lists_other_tensors_is_refused(text: Any) -> None:
    back = text.back(text.to_peft(text.save(text.adapted(LAYERS)), **TOLD))
    tensors = torch.load(back, weights_only=True)
    lost = "transformer.wte.lora_A", "transformer.wte.lora_B"
    torch.save({name: tensor for name, tensor in tensors.items() if name not in lost}, back)
    with pytest.raises(UserError, match=r"missing \(2\):\n  transformer.wte.lora_A"):
        text.to_peft(back, "again", base=None)


def _peft(bench: Any, **settings: Any) -> Any:
    """An adapter that PEFT itself made, with numbers in it."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], **settings}
    model: Any = get_peft_model(
        copy.deepcopy(bench.model), LoraConfig(fan_in_fan_out=True, **settings)
    )
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    folder = bench.folder / "made-by-peft"
    model.save_pretrained(folder)
    return folder, model.eval()


def test_a_linear_adapter_of_peft_becomes_loralibs(text: Any) -> None:
    folder, model = _peft(text, rank_pattern={"h.0.attn.c_attn": 2})
    back = text.back(folder, base=str(text.base))
    ranks = {C_ATTN[0]: 2, C_ATTN[1]: 4}
    theirs = text.adapted({name: {"r": r, "lora_alpha": 8} for name, r in ranks.items()})
    theirs.load_state_dict(torch.load(back, weights_only=True), strict=False)
    torch.testing.assert_close(text.logits(theirs), text.logits(model), rtol=1e-5, atol=2e-5)


def test_rank_stabilised_scaling_goes_where_the_root_is_whole(text: Any) -> None:
    folder, _ = _peft(text, r=4, lora_alpha=8, use_rslora=True)
    record = json.loads(
        text.back(folder, base=str(text.base)).with_suffix(".loralib.json").read_text()
    )
    # 8 / sqrt(4) = 16 / 4.
    assert (record["r"], record["alpha"]) == (4, 16)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"use_dora": True}, "use_dora: true: DoRA has a magnitude vector"),
        (
            {"r": 5, "use_rslora": True},
            r"h\.0\.attn\.c_attn: use_rslora scales by alpha / sqrt\(5\)",
        ),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save.*whole trained modules"),
        ({"lora_bias": True}, "lora_bias: true"),
        ({"init_lora_weights": "olora"}, "init_lora_weights.*changes the base's weights"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
)
def test_what_loralib_cannot_express_is_refused_by_name(
    text: Any, settings: dict[str, Any], told: str
) -> None:
    folder, _ = _peft(text, **settings)
    with pytest.raises(UserError, match=told):
        text.back(folder, base=str(text.base))
    assert not (text.folder / "back.pt").exists()


def test_a_rank_without_blocks_is_refused_by_its_module(text: Any) -> None:
    folder, _ = _peft(text)
    with pytest.raises(
        UserError,
        match=r"h\.0\.attn\.c_attn: \d+ numbers .* do not lie in the blocks.* holds for .*h\.1\.attn",
    ):
        text.back(folder, base=str(text.base), modules={"c_attn": {"enable_lora": BLOCKS}})


def test_a_convolution_that_peft_trained_is_refused_by_its_module(pictures: Any) -> None:
    name = "vit.embeddings.patch_embeddings.projection"
    model: Any = get_peft_model(pictures.model, LoraConfig(r=9, target_modules=["projection"]))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.normal_()
    model.save_pretrained(pictures.folder / "made-by-peft")
    with pytest.raises(UserError, match=f"{name}: .* cannot express this change"):
        pictures.back(pictures.folder / "made-by-peft", base=str(pictures.base))


def test_embedding_weights_that_peft_adds_are_refused_with_the_way_out(text: Any) -> None:
    folder, _ = _peft(text, target_modules=["lm_head"])
    with pytest.raises(UserError, match="save_embedding_layers=False"):
        text.back(folder, base=str(text.base))


def test_a_grouped_convolution_that_is_not_adapted_is_in_nobodys_way(depthwise: Any) -> None:
    names = [name for name, _ in depthwise.model.named_modules() if name.endswith("pwconv1")]
    assert names
    model = depthwise.adapted({name: {"r": 2, "lora_alpha": 4} for name in names})
    checkpoint = depthwise.save(model)
    adapter = depthwise.to_peft(checkpoint, r=2, alpha=4)
    loaded = depthwise.logits(depthwise.load(adapter))
    torch.testing.assert_close(loaded, depthwise.logits(model), rtol=1e-5, atol=2e-5)
    _bit_equal(checkpoint, depthwise.back(adapter))


def test_another_class_of_the_base_has_other_names(text: Any) -> None:
    """A checkpoint of GPT2Model lacks the `transformer.` of the base's GPT2LMHeadModel."""
    inner = replace(text, model=text.model.transformer)
    layer = {"r": 2, "lora_alpha": 4, "enable_lora": BLOCKS}
    checkpoint = inner.save(inner.adapted({"h.0.attn.c_attn": layer}))
    told = {"r": 2, "alpha": 4, "modules": {"c_attn": {"enable_lora": BLOCKS}}}
    with pytest.raises(UserError, match="may come from another class of model"):
        inner.to_peft(checkpoint, **told)
    adapter = inner.to_peft(checkpoint, architecture="GPT2Model", **told)
    loaded = inner.load(adapter)
    assert "default" in loaded.base_model.model.h[0].attn.c_attn.lora_A
    _bit_equal(checkpoint, inner.back(adapter))


def test_another_method_of_peft_is_refused(text: Any) -> None:
    folder, _ = _peft(text)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "LOHA"}))
    with pytest.raises(UserError, match="peft_type is 'LOHA'"):
        text.back(folder, base=str(text.base))


@pytest.mark.parametrize("text_of_config", ["", "[]", "{", '{"peft_type": "LORA", "r": "x"}'])
def test_a_broken_configuration_is_refused(text: Any, text_of_config: str) -> None:
    folder, _ = _peft(text)
    (folder / "adapter_config.json").write_text(text_of_config)
    with pytest.raises(UserError):
        text.back(folder, base=str(text.base))


def test_a_setting_of_a_later_peft_is_refused_rather_than_dropped(text: Any) -> None:
    folder, _ = _peft(text)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_wonders": True}))
    with pytest.raises(UserError, match="use_wonders: true: this version of PEFT does not know it"):
        text.back(folder, base=str(text.base))
