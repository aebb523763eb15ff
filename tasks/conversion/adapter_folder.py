"""An ordinary PEFT adapter: its configuration, its tensors, and what PEFT itself makes of both."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import Conv2d, Embedding, Linear, LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tasks.conversion.base_layers import BaseLayers
from tasks.conversion.layers import LoraPair
from tasks.errors import UserError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
ADAPTER = "default"


@dataclass(frozen=True)
class Adapted:
    """A module as PEFT sets it up for a configuration."""

    name: str
    r: int
    alpha: float
    scaling: float
    a_key: str
    """Key of lora_A in the adapter's file."""
    b_key: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


def adapted_modules(base: BaseLayers, config: LoraConfig) -> list[Adapted]:
    """Let PEFT put the configuration on the base, and read off what it made of it.

    PEFT wraps the base's modules in place: this is done once.

    Raises: UserError for modules that are no plain Linear, Embedding or Conv2d to PEFT, or where PEFT
    refuses the configuration.
    """
    try:
        with torch.device("meta"):
            model: Any = get_peft_model(base.model, config)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise UserError(
            f"PEFT does not put this adapter on {base.shown}: {' '.join(str(error).split())}"
        ) from error
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    found = []
    for full, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        name = full.removeprefix(PREFIX)
        if type(module) not in (Linear, Embedding, Conv2d):
            raise UserError(
                f"{name}: PEFT adapts a {type(module.get_base_layer()).__name__} there in a way that "
                "loralib does not have."
            )
        middle = "lora_embedding_{}" if isinstance(module, Embedding) else "lora_{}.weight"
        a_key, b_key = (f"{full}.{middle.format(letter)}" for letter in "AB")
        found.append(
            Adapted(
                name,
                module.r[ADAPTER],
                module.lora_alpha[ADAPTER],
                module.scaling[ADAPTER],
                a_key,
                b_key,
                (tuple(tensors[a_key].shape), tuple(tensors[b_key].shape)),
            )
        )
    return found


def tensor_key(base_name: str, adapted: Collection[str]) -> str:
    """The adapter file's key of one of the base's own tensors: PEFT wraps adapted modules."""
    module, _, last = base_name.rpartition(".")
    return PREFIX + (f"{module}.base_layer.{last}" if module in adapted else base_name)


def base_name(key: str) -> str:
    """The inverse of `tensor_key`."""
    return key.removeprefix(PREFIX).replace(".base_layer.", ".")


def build_config(
    base: BaseLayers,
    pairs: Mapping[str, LoraPair],
    *,
    bias: str,
    base_name: str,
    base_commit: str | None,
) -> LoraConfig:
    """A configuration that adapts exactly these modules, each with its own rank and alpha."""
    layers = [base.layer(name) for name in pairs]
    common = Counter((pair.r, pair.alpha) for pair in pairs.values()).most_common(1)[0][0]
    return LoraConfig(
        r=common[0],
        lora_alpha=whole(common[1]),
        rank_pattern=_patterns({name: pair.r for name, pair in pairs.items()}, common[0]),
        alpha_pattern=_patterns({name: pair.alpha for name, pair in pairs.items()}, common[1]),
        target_modules=_targets(list(pairs), base.names),
        fan_in_fan_out=any(layer.transposed for layer in layers),
        bias=bias,
        task_type="CAUSAL_LM" if base.is_causal_lm else None,
        base_model_name_or_path=base_name,
        revision=base_commit,
        inference_mode=True,
    )


def write_adapter(folder: Path, config: LoraConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the two files that PEFT loads."""
    folder.mkdir(parents=True)
    save_file(
        {key: tensor.contiguous().clone() for key, tensor in tensors.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    config.save_pretrained(folder)
    path = folder / CONFIG
    written = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(written["target_modules"], list):
        # PEFT keeps them as a set, whose order changes from process to process.
        written["target_modules"].sort()
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors. Raises: UserError when there is no safetensors file, or a broken one."""
    path = folder / WEIGHTS
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no {WEIGHTS}. Save the adapter with PEFT's save_pretrained, which writes "
            "safetensors; a pickled adapter is not read."
        ) from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def whole(alpha: float) -> int | float:
    """16.0 as 16, the way people and other readers of the configuration write it."""
    return int(alpha) if float(alpha).is_integer() else alpha


def _targets(names: list[str], all_names: Iterable[str]) -> list[str] | str:
    """Short names where they cover nothing else: people and inference servers read them more easily.

    PEFT takes a name for every module that ends with it; where that cannot be told apart by names, a
    regular expression of whole names.
    """
    modules, wanted = list(all_names), set(names)
    same: dict[str, set[str]] = {}
    for module in modules:
        same.setdefault(module.rsplit(".", 1)[-1], set()).add(module)
    targets = set()
    for name in names:
        last = name.rsplit(".", 1)[-1]
        targets.add(last if same[last] <= wanted else name)
    covered = {m for m in modules if m in targets or any(m.endswith(f".{t}") for t in targets)}
    if covered == wanted:
        return sorted(targets)
    return "|".join(re.escape(name) for name in sorted(names))


def _patterns(values: Mapping[str, float], common: float) -> dict[str, int | float]:
    """PEFT's `rank_pattern`: a regular expression for the end of a name, where a value is not the common one."""
    by_last: dict[str, set[float]] = {}
    for name, value in values.items():
        by_last.setdefault(name.rsplit(".", 1)[-1], set()).add(value)
    patterns: dict[str, int | float] = {}
    for name, value in values.items():
        last = name.rsplit(".", 1)[-1]
        if by_last[last] == {common}:
            continue
        if len(by_last[last]) == 1:
            patterns[re.escape(last)] = whole(value)
        elif value != common:
            patterns[f"^{re.escape(name)}"] = whole(value)
    return patterns
