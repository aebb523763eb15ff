"""A base of one's own, without transformers: names and shapes come from its weights alone."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import loralib
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file

from tasks.conversion.converting import convert_to_loralib, convert_to_peft
from tasks.conversion.sidecar import parse_sidecar
from tasks.errors import BaseModelError, UserError
from tasks.home import home


class Small(torch.nn.Module):
    """All four kinds; `adapted` makes loralib's layers of them."""

    def __init__(self, adapted: bool) -> None:
        super().__init__()
        lora: Any = {"r": 2, "lora_alpha": 6} if adapted else {}
        kinds: Any = loralib if adapted else torch.nn
        self.words = kinds.Embedding(11, 6, **lora)
        self.norm = torch.nn.LayerNorm(6)
        merged = {**lora, "enable_lora": [False, True]} if adapted else {}
        self.fused = (loralib.MergedLinear if adapted else torch.nn.Linear)(6, 16, **merged)
        self.conv = kinds.Conv2d(1, 5, 3, stride=2, padding=1, **lora)
        self.heads = torch.nn.ModuleList([kinds.Linear(160, 4, bias=False, **lora)])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.fused(self.norm(self.words(ids)))
        return self.heads[0](self.conv(rows[:, None]).flatten(1))


@dataclass(frozen=True)
class Trained:
    plain: Small
    adapted: Small
    folder: Path

    def save(self, bias: str) -> Path:
        path = self.folder / "lora.pt"
        torch.save(loralib.lora_state_dict(self.adapted, bias=bias), path)
        return path

    def convert(self, checkpoint: Path, **told: Any) -> Path:
        said = {"r": 2, "alpha": 6, "modules": {"fused": {"enable_lora": [False, True]}}, **told}
        base = str(self.folder / "base.safetensors")
        flags = parse_sidecar({"base": base, **said}, "flags")
        convert_to_peft(checkpoint, flags, output=self.folder / "adapter", home=home())
        return self.folder / "adapter"


@pytest.fixture
def trained(tmp_path: Path, in_process: None) -> Trained:
    home().prepare()
    torch.manual_seed(0)
    plain, adapted = Small(adapted=False), Small(adapted=True)
    weights = {
        name.replace("conv.", "conv.conv."): tensor for name, tensor in plain.state_dict().items()
    }
    assert not adapted.load_state_dict(weights, strict=False).unexpected_keys
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    save_file(plain.state_dict(), tmp_path / "base.safetensors")
    return Trained(plain, adapted, tmp_path)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_all_four_kinds_of_a_plain_model_there_and_back(trained: Trained, bias: str) -> None:
    ids = torch.randint(0, 11, (3, 7))
    with torch.no_grad():
        for name, parameter in trained.adapted.named_parameters():
            lora_bias = name in ("fused.bias",)
            if (bias == "all" and "bias" in name) or (bias == "lora_only" and lora_bias):
                parameter.add_(1)
    checkpoint = trained.save(bias)
    adapter = trained.convert(checkpoint)
    loaded = PeftModel.from_pretrained(copy.deepcopy(trained.plain), adapter).eval()
    wanted = trained.adapted.train()(ids)
    torch.testing.assert_close(loaded(ids), wanted, rtol=1e-5, atol=2e-5)
    merged = trained.adapted.eval()(ids)
    torch.testing.assert_close(loaded.merge_and_unload()(ids), merged, rtol=1e-5, atol=2e-5)
    back = trained.folder / "back.pt"
    convert_to_loralib(adapter, parse_sidecar({}, "flags"), output=back, home=home())
    first, second = (torch.load(path, weights_only=True) for path in (checkpoint, back))
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_name_that_the_weights_lack_is_refused(trained: Trained) -> None:
    path = trained.save("none")
    tensors = torch.load(path, weights_only=True)
    torch.save({name.replace("fused", "fusd"): tensor for name, tensor in tensors.items()}, path)
    with pytest.raises(UserError, match="Did you mean `fused`"):
        trained.convert(path)


def test_weights_that_are_no_safetensors_are_refused(trained: Trained) -> None:
    (trained.folder / "base.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(BaseModelError, match="cannot be read as safetensors"):
        trained.convert(trained.save("none"))
