"""Write adapters that began with a part of the base (PiSSA, OLoRA, CorDA, LoRA-GA) as plain LoRA.

They take s B0 A0 out of the base's weights and train from there. Whoever loads s B A onto the
untouched base would get another model, unless it repeats the decomposition, which no inference server
does. Written with twice the rank, [B, -B0] [A; A0] is the same change of the untouched base.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tasks.training.lora_starts import FROM_THE_BASE


class StartingPoint:
    """A0 and B0 of an adapter that took them out of the base."""

    def __init__(self, model: Any) -> None:
        self._tensors = {
            _name_in_file(name): parameter.detach().to("cpu", copy=True)
            for name, parameter in model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }

    def make_plain(self, folder: Path) -> None:
        """Rewrite a saved adapter as the plain LoRA that changes the untouched base alike."""
        weights = folder / "adapter_model.safetensors"
        trained = load_file(weights)
        plain: dict[str, torch.Tensor] = {}
        for name, tensor in trained.items():
            start = self._tensors.get(name)
            if start is None:
                plain[name] = tensor
            elif ".lora_A." in name:
                plain[name] = torch.cat([tensor, start.to(tensor.dtype)], dim=0)
            else:
                plain[name] = torch.cat([tensor, -start.to(tensor.dtype)], dim=1)
        save_file(plain, weights, metadata={"format": "pt"})
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        # The scale stays: alpha / r, or alpha / sqrt(r) where the rank is stabilised.
        grown = 2**0.5 if config.get("use_rslora") else 2
        config["r"] *= 2
        config["lora_alpha"] *= grown
        config["rank_pattern"] = {n: 2 * r for n, r in (config.get("rank_pattern") or {}).items()}
        config["alpha_pattern"] = {
            n: grown * alpha for n, alpha in (config.get("alpha_pattern") or {}).items()
        }
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def takes_from_the_base(config: Any) -> bool:
    """Whether an adapter of this PEFT configuration begins with a part of the base."""
    start = getattr(config, "init_lora_weights", None)
    return isinstance(start, str) and start.startswith(FROM_THE_BASE)


def forget_the_start(folder: Path) -> None:
    """A saved adapter is loaded, not drawn: its configuration asks for no decomposition and no data.

    LoftQ stays: its base is another one, which a loader has to make again.
    """
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config.get("init_lora_weights"), str) or (
        config["init_lora_weights"] in ("loftq", "mica")
    ):
        return
    config["init_lora_weights"] = True
    config |= dict.fromkeys(("eva_config", "corda_config", "lora_ga_config"))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _name_in_file(parameter: str) -> str:
    return parameter.replace(".default.", ".")
