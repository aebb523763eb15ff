"""Models adapted by the real loralib, on bases so small that a test takes milliseconds."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import loralib
import pytest
import torch
from peft import PeftModel
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.pytorch_utils import Conv1D

from tasks.conversion.converting import convert_to_loralib, convert_to_peft
from tasks.conversion.job import Conversion, ConversionJob
from tasks.conversion.sidecar import parse_sidecar
from tasks.home import Home, home


def build_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50,
        n_positions=32,
        n_embd=12,
        n_layer=2,
        n_head=2,
        # Large enough that attention looks at something, and a wrong key shows in the output.
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return with_random_biases(GPT2LMHeadModel(config))


def build_vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=12,
        patch_size=3,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return with_random_biases(ViTForImageClassification(config))


def with_random_biases(model: Any) -> Any:
    """Zero biases would hide a mistake."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.5)
    return model


def adapt(model: PreTrainedModel, layers: Mapping[str, Mapping[str, Any]]) -> PreTrainedModel:
    """A copy of the model in which loralib's layers stand in for some modules, as its README does it.

    `layers`: by module name, loralib's arguments; `enable_lora` makes a MergedLinear.
    """
    model = copy.deepcopy(model)
    for name, arguments in layers.items():
        parent, _, last = name.rpartition(".")
        setattr(
            model.get_submodule(parent), last, _loralib_layer(model.get_submodule(name), arguments)
        )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return model


def _loralib_layer(old: Any, arguments: Mapping[str, Any]) -> Any:
    new: Any
    if isinstance(old, torch.nn.Embedding):
        new = loralib.Embedding(old.num_embeddings, old.embedding_dim, **arguments)
        new.weight.data = old.weight.data
        return new
    if isinstance(old, torch.nn.Conv2d):
        new = loralib.Conv2d(
            old.in_channels,
            old.out_channels,
            old.kernel_size[0],
            stride=old.stride,
            padding=old.padding,
            bias=old.bias is not None,
            **arguments,
        )
        new.conv.load_state_dict(old.state_dict())
        # Models ask their convolutions for the dtype; not a parameter, so it is not saved twice.
        new.__dict__["weight"] = new.conv.weight
        return new
    made = loralib.MergedLinear if "enable_lora" in arguments else loralib.Linear
    if isinstance(old, Conv1D):
        rows, columns = old.weight.shape
        new = made(rows, columns, fan_in_fan_out=True, **arguments)
    else:
        new = made(old.in_features, old.out_features, bias=old.bias is not None, **arguments)
    new.weight.data = old.weight.data
    if old.bias is not None:
        new.bias.data = old.bias.data
    return new


def train_biases(model: PreTrainedModel, bias: str) -> None:
    """What training would do to the biases of this mode."""
    loralib.mark_only_lora_as_trainable(model, bias=bias)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "bias" in name:
                parameter.add_(torch.randn_like(parameter))


@dataclass(frozen=True)
class Bench:
    """A base, and the conversion of what is trained on it, in this process."""

    model: Any
    inputs: dict[str, torch.Tensor]
    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def adapted(self, layers: Mapping[str, Mapping[str, Any]], bias: str = "none") -> Any:
        """The base with loralib's layers, as if trained, in train mode (not merged)."""
        model = adapt(self.model, layers)
        train_biases(model, bias)
        return model.train()

    def logits(self, model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(**self.inputs).logits

    def save(self, model: Any, bias: str = "none", name: str = "lora.pt") -> Path:
        path = self.folder / name
        torch.save(loralib.lora_state_dict(model, bias=bias), path)
        return path

    def convert(self, checkpoint: Path, name: str = "adapter", **told: Any) -> Conversion:
        flags = parse_sidecar({"base": str(self.base), **told}, "flags")
        return convert_to_peft(checkpoint, flags, output=self.folder / name, home=_prepared())

    def to_peft(self, checkpoint: Path, name: str = "adapter", **told: Any) -> Path:
        self.convert(checkpoint, name, **told)
        return self.folder / name

    def back(self, adapter: Path, name: str = "back.pt", **told: Any) -> Path:
        output = self.folder / name
        flags = parse_sidecar(told, "flags")
        convert_to_loralib(adapter, flags, output=output, home=_prepared())
        return output

    def load(self, adapter: Path) -> Any:
        return PeftModel.from_pretrained(copy.deepcopy(self.model), adapter).eval()


def _prepared() -> Home:
    state = home()
    state.prepare()
    return state


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the worker's work here: starting one costs seconds, and other tests do start it."""
    from tasks.conversion.worker import convert

    def run(argv: list[str], **_: Any) -> None:
        convert(ConversionJob.model_validate_json(Path(argv[-1]).read_text()))

    monkeypatch.setattr("tasks.launch.run", run)


@pytest.fixture
def text(tmp_path: Path, in_process: None) -> Bench:
    """A GPT-2: fused `c_attn`, weights stored (in, out), an embedding tied to the head."""
    model = build_gpt2().eval()
    model.save_pretrained(tmp_path / "base")
    torch.manual_seed(2)
    return Bench(model, {"input_ids": torch.randint(0, 50, (2, 9))}, tmp_path)


@pytest.fixture
def pictures(tmp_path: Path, in_process: None) -> Bench:
    """A vision transformer: a convolution with a bias, and ordinary linear layers."""
    model = build_vit().eval()
    model.save_pretrained(tmp_path / "base")
    torch.manual_seed(2)
    return Bench(model, {"pixel_values": torch.randn(2, 3, 12, 12)}, tmp_path)


@pytest.fixture
def residual(tmp_path: Path, in_process: None) -> Bench:
    """A ResNet: convolutions with kernels of 1 and 3, strides of 1 and 2, padding, and no biases."""
    torch.manual_seed(0)
    sizes = {"embedding_size": 6, "hidden_sizes": [6, 8], "depths": [1, 1]}
    model = ResNetForImageClassification(ResNetConfig(layer_type="bottleneck", **sizes)).eval()
    model.save_pretrained(tmp_path / "base")
    torch.manual_seed(2)
    return Bench(model, {"pixel_values": torch.randn(2, 3, 24, 24)}, tmp_path)


@pytest.fixture
def depthwise(tmp_path: Path, in_process: None) -> Bench:
    """A ConvNeXt: depthwise convolutions beside linear layers."""
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2, "patch_size": 2}
    model = ConvNextForImageClassification(
        # The scale of each block is 1e-6 by default: nothing would show in the output.
        ConvNextConfig(layer_scale_init_value=1.0, initializer_range=0.3, **sizes)
    ).eval()
    model.save_pretrained(tmp_path / "base")
    torch.manual_seed(2)
    return Bench(model, {"pixel_values": torch.randn(2, 3, 16, 16)}, tmp_path)
