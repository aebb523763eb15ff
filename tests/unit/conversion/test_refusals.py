"""A checkpoint that does not fit is refused in words that name the module and the way out."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import loralib
import pytest
import torch

from tasks.conversion import to_peft
from tasks.errors import StageFailed, UserError

C_ATTN = [f"transformer.h.{layer}.attn.c_attn" for layer in (0, 1)]
BLOCKS = [True, False, True]
TOLD: dict[str, Any] = {"r": 2, "alpha": 4, "modules": {"c_attn": {"enable_lora": BLOCKS}}}


@pytest.fixture
def checkpoint(text: Any) -> Any:
    arguments = {"r": 2, "lora_alpha": 4, "enable_lora": BLOCKS}
    return text.save(text.adapted(dict.fromkeys(C_ATTN, arguments)))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"r": 2}, "give --alpha as the model was built with"),
        ({**TOLD, "r": 4}, r"The same holds for transformer\.h\.1\.attn\.c_attn\."),
        ({"alpha": 2}, "give --r as the model was built with"),
        (
            {**TOLD, "r": 4},
            r"c_attn: .* lora_A 8 x 12 and lora_B 24 x 4; .* 4 x 12 and 24 x 2. They fit r=2",
        ),
        (
            {"r": 2, "alpha": 4},
            r"They fit a MergedLinear with 2 of 3 blocks enabled; say which: --enable-lora",
        ),
        (
            {**TOLD, "modules": {"c_attn": {"enable_lora": [True, False, True, True, True]}}},
            "enable_lora has 5 entries, which do not divide the 36 output rows",
        ),
        (
            {**TOLD, "modules": {"c_attn": {"enable_lora": [False, False, False]}}},
            "enable_lora enables no block",
        ),
        (
            {**TOLD, "modules": {"c_attn": {"enable_lora": [True, True, True]}}},
            "a MergedLinear with blocks 1,1,1 of r=2",
        ),
        (
            {**TOLD, "modules": {"c_atn": {"enable_lora": BLOCKS}}},
            r"c_atn. Did you mean `c_attn`",
        ),
        ({**TOLD, "bias": "all"}, r"not those of bias=all:\nmissing, .*\n  transformer.h.0.attn"),
        ({**TOLD, "architecture": "GPT9Model"}, "no model class 'GPT9Model'"),
        ({**TOLD, "architecture": "GPT2Model"}, "may come from another class of model"),
    ],
)
def test_what_is_said_must_fit_the_tensors(
    text: Any, checkpoint: Any, told: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        text.to_peft(checkpoint, **told)
    assert not (text.folder / "adapter").exists()


Change = Callable[[dict[str, torch.Tensor]], Any]


def _without(name: str) -> Change:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _without(f"{C_ATTN[0]}.lora_B"),
            rf"lacks the other half of 1 pairs:\n  {C_ATTN[0]}.lora_B",
        ),
        (
            lambda t: {key.replace("c_attn", "c_atn"): value for key, value in t.items()},
            r"adapts 2 modules .* does not have:\n.*\n.*\nDid you mean `transformer.h.0.attn.c_attn`",
        ),
        (
            lambda t: t | {"lm_head.weight": torch.ones(2)},
            r"not only LoRA: 1 of its 5 .*\n  lm_head.weight",
        ),
        (lambda t: {"lm_head.weight": torch.ones(2)}, "none of LoRA's"),
        (lambda t: t | {"lm_head.bias": torch.ones(2)}, r"unexpected, .* \(1\):\n  lm_head.bias"),
        (lambda t: t | {f"{C_ATTN[0]}.bias": torch.ones(36)}, rf"missing, .*\n  {C_ATTN[1]}.bias"),
        (
            lambda t: t | {f"{name}.bias": torch.ones(35) for name in C_ATTN},
            r"biases do not fit the base:\n  .*\(35,\), the base has \(36,\)",
        ),
        (
            lambda t: t | {f"{C_ATTN[0]}.lora_A": torch.full((4, 12), float("nan"))},
            "48 of 48 numbers",
        ),
        (lambda t: t | {f"{C_ATTN[0]}.lora_A": torch.ones(4, 12).int()}, "not of floating point"),
        (lambda t: t | {f"{C_ATTN[0]}.lora_A": torch.ones(12)}, "the checkpoint has 12 and 24 x 2"),
        (lambda t: t | {"step": 3}, r"not plain tensors:\n  step \(int\)"),
        (lambda t: list(t.values()), "holds a list"),
        (lambda t: {}, "holds no tensors"),
        (
            lambda t: {f"base_model.model.{C_ATTN[0]}.lora_A.weight": torch.ones(2, 2)},
            "it is an adapter of PEFT",
        ),
        (
            lambda t: (
                t
                | {
                    "transformer.ln_f.lora_A": torch.ones(2, 2),
                    "transformer.ln_f.lora_B": torch.ones(2, 2),
                }
            ),
            "ln_f: is a LayerNorm",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_base_are_named(
    text: Any, checkpoint: Any, change: Change, message: str
) -> None:
    torch.save(change(dict(torch.load(checkpoint, weights_only=True))), checkpoint)
    with pytest.raises(UserError, match=message):
        text.to_peft(checkpoint, **TOLD)
    assert not (text.folder / "adapter").exists()


def test_a_whole_state_dict_is_refused(text: Any) -> None:
    path = text.folder / "whole.pt"
    model = text.adapted({C_ATTN[0]: {"r": 2, "lora_alpha": 4, "enable_lora": BLOCKS}})
    torch.save(model.state_dict(), path)
    with pytest.raises(UserError, match=r"not only LoRA: .* as in a whole model's state dict"):
        text.to_peft(path, **TOLD)


def test_causal_masks_that_older_code_saves_as_biases_are_left_out(text: Any) -> None:
    """Older GPT-2 code registers its mask as `attn.bias`, and bias=all saves every such name."""
    model = text.adapted({C_ATTN[0]: {"r": 2, "lora_alpha": 4, "enable_lora": BLOCKS}}, "all")
    tensors = dict(loralib.lora_state_dict(model, bias="all"))
    for layer in (0, 1):
        tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    path = text.folder / "old.pt"
    torch.save(tensors, path)
    done = text.convert(path, **TOLD)
    assert done.bias == "all"
    assert any("4 causal masks" in note for note in done.notes)
    loaded = text.load(text.folder / "adapter")
    torch.testing.assert_close(text.logits(loaded), text.logits(model), rtol=1e-5, atol=2e-5)


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("through_torch", [True, False])
def test_a_malicious_pickle_is_refused_and_nothing_is_executed(
    text: Any, through_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    trap, path = text.folder / "executed", text.folder / "evil.pt"
    value = {f"{C_ATTN[0]}.lora_A": Malicious(str(trap))}
    if through_torch:
        torch.save(value, path)
    else:
        path.write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match=r"Nothing of it was executed") as refused:
        text.to_peft(path, **TOLD)
    assert "weights_only" not in str(refused.value)
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn", b"\x80\x02."])
def test_a_file_that_is_no_checkpoint_is_refused(text: Any, content: bytes) -> None:
    path = text.folder / "lora.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"lora\.pt"):
        text.to_peft(path, **TOLD)


def test_a_torn_checkpoint_is_refused(text: Any, checkpoint: Any) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-400])
    with pytest.raises(UserError, match="incomplete"):
        text.to_peft(checkpoint, **TOLD)


def test_nothing_that_is_there_is_overwritten(text: Any, checkpoint: Any) -> None:
    (text.folder / "adapter").mkdir()
    (text.folder / "adapter" / "precious").touch()
    with pytest.raises(UserError, match="is there already"):
        text.to_peft(checkpoint, **TOLD)
    assert (text.folder / "adapter" / "precious").exists()


@pytest.mark.parametrize("layer", [{"groups": 3}, {"dilation": 2}, {"padding_mode": "reflect"}])
def test_convolutions_that_peft_computes_differently_are_refused(layer: Any) -> None:
    from tasks.conversion.base_layers import BaseLayers

    model = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(3, 6, 3, **layer)})
    with pytest.raises(UserError, match="conv: this Conv2d cannot be converted exactly"):
        BaseLayers(model, shown="a model", is_causal_lm=False).layer("conv")


def test_an_embedding_that_scales_is_refused() -> None:
    from tasks.conversion.base_layers import BaseLayers

    embedding = torch.nn.Embedding(5, 4)
    embedding.register_buffer("embed_scale", torch.tensor(2.0))
    base = BaseLayers(torch.nn.ModuleDict({"e": embedding}), shown="a model", is_causal_lm=False)
    with pytest.raises(UserError, match="e: this Embedding scales what it looks up"):
        base.layer("e")


def test_a_base_of_foreign_code_is_refused(text: Any, checkpoint: Any) -> None:
    path = text.base / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "architectures": ["TheirOwnModel"]}))
    with pytest.raises(UserError, match="names the architecture 'TheirOwnModel'"):
        text.to_peft(checkpoint, **TOLD)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda t: t.to(torch.float8_e4m3fn), r"torch\.float8_e4m3fn"),
        (lambda t: t.to("meta"), "no numbers, only a shape"),
        (lambda t: t.to(torch.complex64), r"torch\.complex64"),
    ],
    ids=["float8", "meta", "complex"],
)
def test_tensors_that_nobody_trains_in_are_refused_with_their_format(
    text: Any, checkpoint: Any, changed: Callable[[torch.Tensor], torch.Tensor], told: str
) -> None:
    tensors = torch.load(checkpoint, weights_only=True)
    name = f"{C_ATTN[0]}.lora_A"
    tensors[name] = changed(tensors[name])
    torch.save(tensors, checkpoint)
    with pytest.raises(UserError, match=rf"no numbers of an adapter:\n.*{name} \({told}\)"):
        text.convert(checkpoint, **TOLD)


def test_an_adapter_that_peft_would_read_otherwise_is_not_written(
    text: Any, checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = to_peft.adapted_modules

    def otherwise(*arguments: Any) -> Any:
        return [replace(module, scaling=module.scaling * 2) for module in real(*arguments)]

    monkeypatch.setattr(to_peft, "adapted_modules", otherwise)
    with pytest.raises(StageFailed, match=r"its scale would be 4\.0 and not 2\.0 \(at transf"):
        text.convert(checkpoint, **TOLD)
    monkeypatch.setattr(to_peft, "adapted_modules", lambda *a: list(real(*a))[1:])
    with pytest.raises(StageFailed, match="adapts 1 modules and not 2"):
        text.convert(checkpoint, **TOLD)
