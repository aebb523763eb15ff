"""What the base has that can be adapted: names, kinds and shapes, read off a model without weights."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from tasks.errors import BaseModelError, UserError
from tasks.suggest import did_you_mean

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """One module of the base that LoRA can be put on."""

    name: str
    kind: Literal["linear", "embedding", "conv2d"]
    in_features: int
    """Columns of a linear layer's change, rows of an embedding's table, input channels."""
    out_features: int
    transposed: bool = False
    """The weight is stored (in, out), as GPT-2 does; loralib calls that `fan_in_fan_out`."""
    kernel: int = 1
    has_bias: bool = False

    @property
    def shown(self) -> str:
        """For messages: `Linear 768 -> 2304`."""
        if self.kind == "conv2d":
            k = self.kernel
            return f"Conv2d {self.in_features} -> {self.out_features}, kernel {k} x {k}"
        if self.kind == "embedding":
            return f"Embedding {self.in_features} x {self.out_features}"
        return f"Linear {self.in_features} -> {self.out_features}"


class BaseLayers:
    """The base model on torch's meta device: no weights are read and no memory is taken."""

    knows_convolutions = True
    """Whether dilation and padding of convolutions are known, and were looked at."""

    def __init__(self, model: Any, *, shown: str, is_causal_lm: bool) -> None:
        self.model = model
        self.shown = shown
        self.is_causal_lm = is_causal_lm
        self._modules: dict[str, Any] = dict(model.named_modules())
        self.tensors: dict[str, torch.Tensor] = model.state_dict()
        """Every parameter and persistent buffer; only shapes are meant."""

    @property
    def names(self) -> list[str]:
        """Every module's full dotted name."""
        return [name for name in self._modules if name]

    def __contains__(self, name: str) -> bool:
        return bool(name) and name in self._modules

    def adaptable(self) -> list[tuple[str, Any]]:
        """Names and modules of every kind that goes between loralib and PEFT."""
        kinds = (Conv1D, torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv2d)
        return [(name, m) for name, m in self._modules.items() if name and isinstance(m, kinds)]

    @property
    def ties_embeddings(self) -> bool:
        """Whether the output head is the input embedding's table."""
        config = getattr(self.model, "config", None)
        return bool(config and getattr(config.get_text_config(), "tie_word_embeddings", False))

    def settle(self, name: str, columns: int) -> None:
        """Told the columns of a module's lora_A; a model of transformers knows its kinds anyway."""

    def layer(self, name: str) -> Layer:
        """The module of this name. Raises: UserError for one that is absent, or no layer LoRA knows."""
        module = self._modules.get(name)
        if module is None:
            raise UserError(f"{name}: {self.shown} has no such module.{self.likely(name)}")
        bias = isinstance(getattr(module, "bias", None), torch.Tensor)
        if isinstance(module, Conv1D):
            rows, columns = module.weight.shape
            return Layer(name, "linear", rows, columns, transposed=True, has_bias=bias)
        if isinstance(module, torch.nn.Linear):
            return Layer(name, "linear", module.in_features, module.out_features, has_bias=bias)
        if isinstance(module, torch.nn.Embedding):
            if hasattr(module, "embed_scale"):
                raise UserError(
                    f"{name}: this {type(module).__name__} scales what it looks up, and with it PEFT's "
                    "adapter; loralib's Embedding scales nothing, so the two would differ."
                )
            return Layer(name, "embedding", module.num_embeddings, module.embedding_dim)
        if isinstance(module, torch.nn.Conv2d):
            return _conv_layer(name, module, bias)
        raise UserError(
            f"{name}: is a {type(module).__name__} in {self.shown}. Between loralib and PEFT go "
            "Linear, MergedLinear, Embedding and Conv2d."
        )

    def likely(self, name: str) -> str:
        """A hint at what a module that the base lacks is called there; empty where nothing is near."""
        last = name.rsplit(".", 1)[-1]
        if alike := [own for own in self.names if own.endswith(f".{name}")]:
            return f" It has {alike[0]}: the checkpoint may come from another class of model."
        if alike := [own for own in self.names if name.endswith(f".{own}")]:
            return f" It has {alike[0]}: the checkpoint may come from another class of model."
        same = [own for own in self.names if own.rsplit(".", 1)[-1] == last]
        return " " + hint if (hint := did_you_mean(name, same or self.names)) else ""


def load_base_layers(folder: Path, *, shown: str, architecture: str | None) -> BaseLayers:
    """Build the model that `folder/config.json` describes, without weights and without foreign code.

    Raises: BaseModelError when the configuration names no class of transformers or needs the
    repository's own code; UserError for an `architecture` that does not exist.
    """
    path = folder / "config.json"
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        # transformers raises ValueError, KeyError, OSError and huggingface_hub's own validation errors.
        told = " ".join(str(error).split())
        raise BaseModelError(
            f"The base {shown}: {path} does not describe a model that this version of transformers "
            f"knows ({told[:300]})."
        ) from error
    named = architecture or next(iter(raw.get("architectures") or []), None)
    model_class = getattr(transformers, named, None) if named else None
    if not (
        isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    ):
        if architecture:
            raise UserError(f"architecture: transformers has no model class {architecture!r}.")
        raise BaseModelError(
            f"The base {shown}: {path} names the architecture {named!r}, which is no class of "
            "transformers. Name the class of the checkpoint's model with --architecture."
        )
    try:
        with torch.device("meta"):
            model = model_class(config)
    except Exception as error:
        raise UserError(
            f"{named} cannot be built from {path}: {' '.join(str(error).split())[:300]}"
        ) from error
    _log.info("Base %s is a %s", shown, named)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type) == named
    return BaseLayers(model, shown=f"{named} of {shown}", is_causal_lm=causal)


def _conv_layer(name: str, module: torch.nn.Conv2d, bias: bool) -> Layer:
    """Raises: UserError for what either loralib or PEFT computes differently."""
    height, width = module.kernel_size
    reasons = {
        "loralib's Conv2d knows square kernels only": height != width,
        "PEFT adapts grouped convolutions in another form": module.groups != 1,
        "PEFT's adapter ignores dilation": module.dilation != (1, 1),
        "PEFT's adapter pads with zeros": module.padding_mode != "zeros",
    }
    wrong = [reason for reason, holds in reasons.items() if holds]
    if wrong:
        raise UserError(
            f"{name}: this Conv2d cannot be converted exactly: {'; '.join(wrong)} (kernel {height} x "
            f"{width}, groups {module.groups}, dilation {module.dilation}, padding "
            f"{module.padding_mode})."
        )
    return Layer(
        name, "conv2d", module.in_channels, module.out_channels, kernel=height, has_bias=bias
    )
