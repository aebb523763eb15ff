"""An adapter's folder becomes a loralib checkpoint, where loralib has layers that compute the same."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor

from tasks.conversion.adapter_folder import (
    CONFIG,
    PREFIX,
    Adapted,
    adapted_modules,
    read_tensors,
    tensor_key,
)
from tasks.conversion.base_layers import BaseLayers, Layer
from tasks.conversion.biases import conv_bias_names, expected_biases
from tasks.conversion.checkpoint import write_checkpoint
from tasks.conversion.job import RECORD, Conversion, ConversionJob, ConvertedModule
from tasks.conversion.layers import LoraPair, to_loralib
from tasks.conversion.listing import listed, listed_once
from tasks.conversion.record import completed_sidecar
from tasks.conversion.sidecar import BiasMode, CheckpointLayout, check_patterns, spec_of
from tasks.errors import UserError

_WITHOUT_EFFECT = {
    # What the training was told, and what is read off the adapted modules themselves.
    "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "peft_type", "peft_version", "r", "rank_pattern", "alpha_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "use_rslora", "megatron_core", "loftq_config", "qalora_group_size",
    "eva_config",
}  # fmt: skip
"""Fields of PEFT's configuration that do not change what the saved tensors compute on the base."""
_BASE_UNCHANGED_BY = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base's weights as they are; the others move a part into the adapter."""
_MEANING = {
    "use_dora": "DoRA has a magnitude vector beside the two matrices",
    "modules_to_save": "whole trained modules have no place among LoRA's tensors",
    "trainable_token_indices": "trained tokens have no place among LoRA's tensors",
    "lora_bias": "loralib's lora_B has no bias",
    "target_parameters": "loralib adapts modules, and not bare parameters",
    "layer_replication": "the adapted model is not the base",
}


def convert(job: ConversionJob, base: BaseLayers) -> Conversion:
    """Write the checkpoint's file to `job.draft` and its sidecar to `job.record`.

    Raises: UserError that names the setting or module which loralib cannot express.
    """
    config = _read_config(job.source)
    tensors = read_tensors(job.source)
    for key, tensor in tensors.items():
        name, _, last = key.removeprefix(PREFIX).rpartition(".")
        if last == "lora_embedding_A":
            base.settle(name, tensor.shape[-1])
    adapted = adapted_modules(base, config)
    names = {module.name for module in adapted}
    check_patterns(job.sidecar, names, f"{job.source.name}")
    layers = {name: base.layer(name) for name in names}
    biases = _bias_tensors(
        tensors, adapted, list(layers.values()), set(base.tensors), config.bias, job.source.name
    )

    mistakes: list[tuple[str, str]] = []
    modules: list[ConvertedModule] = []
    written: dict[str, Tensor] = {}
    for module in adapted:
        try:
            pair = _pair(module, config, tensors)
            found, told = to_loralib(layers[module.name], spec_of(job.sidecar, module.name), pair)
        except UserError as error:
            mistakes.append((module.name, str(error)))
            continue
        modules.append(told)
        written |= {f"{module.name}.lora_A": found.a, f"{module.name}.lora_B": found.b}
    if mistakes:
        raise UserError(f"{job.source.name} cannot become loralib's:\n{listed_once(mistakes)}")
    written |= biases
    layout = _layout(job, written)
    write_checkpoint(job.draft, written, layout)
    record = completed_sidecar(job, modules, config.bias, layout)
    text = record.model_dump_json(indent=1, exclude_none=True)
    job.record.write_text(text + "\n", encoding="utf-8")
    return Conversion(modules=modules, bias=config.bias, num_biases=len(biases), notes=[])


def _read_config(folder: Path) -> LoraConfig:
    """Raises: UserError for settings that make of the tensors something else than plain LoRA."""
    path = folder / CONFIG
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    kind = raw.get("peft_type") if isinstance(raw, dict) else None
    if kind != "LORA":
        raise UserError(f"{path}: peft_type is {kind!r}; loralib expresses LoRA and nothing else.")
    plain = LoraConfig()
    known = {field.name for field in fields(LoraConfig)}
    lines = []
    for name, value in raw.items():
        if name in _WITHOUT_EFFECT:
            continue
        if name == "init_lora_weights":
            if value in _BASE_UNCHANGED_BY:
                continue
            why = "it changes the base's weights before training; save with PEFT's path_initial_model_for_weight_conversion first"
        elif name not in known:
            if not value:
                continue
            why = "this version of PEFT does not know it"
        elif not value or value == getattr(plain, name):
            continue
        else:
            why = _MEANING.get(name, "loralib has nothing of the kind")
        lines.append(f"{name}: {json.dumps(value)}: {why}.")
    if lines:
        raise UserError(f"{path} has settings that loralib cannot express:\n{listed(lines)}")
    # What initialises the tensors is of no use for tensors that are there, and may need data.
    fresh = {"init_lora_weights", "eva_config", "loftq_config"}
    try:
        return LoraConfig(**{n: value for n, value in raw.items() if n in known - fresh})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: PEFT does not read it: {error}") from error


def _pair(module: Adapted, config: LoraConfig, tensors: dict[str, Tensor]) -> LoraPair:
    a, b = tensors[module.a_key], tensors[module.b_key]
    if (tuple(a.shape), tuple(b.shape)) != module.shapes:
        raise UserError(
            f"{module.name}: its tensors are {tuple(a.shape)} and {tuple(b.shape)}, and the "
            f"configuration makes {module.shapes[0]} and {module.shapes[1]} on this base."
        )
    if not config.use_rslora:
        return LoraPair(a, b, module.r, module.alpha)
    root = math.isqrt(module.r)
    if root**2 != module.r:
        raise UserError(
            f"{module.name}: use_rslora scales by alpha / sqrt({module.r}), and loralib by alpha / r: "
            "no alpha of loralib gives exactly that, since the root is no whole number."
        )
    return LoraPair(a, b, module.r, module.alpha * root)


def _bias_tensors(
    tensors: dict[str, Tensor],
    adapted: list[Adapted],
    layers: list[Layer],
    base_tensors: set[str],
    mode: BiasMode,
    source: str,
) -> dict[str, Tensor]:
    """The trained biases by loralib's names, once every key of the file is accounted for.

    Raises: UserError for tensors that are missing, or that loralib's checkpoint has no place for.
    """
    pairs = {key for module in adapted for key in (module.a_key, module.b_key)}
    rest = set(tensors) - pairs
    names = {module.name for module in adapted}
    ours = {tensor_key(name, names): name for name in expected_biases(mode, base_tensors, layers)}
    # PEFT saves what ends with `.bias`, loralib what has "bias" anywhere in its name.
    optional = {key for key in ours if mode == "all" and not key.endswith(".bias")}
    missing = (pairs - set(tensors)) | (set(ours) - rest - optional)
    unexpected = rest - set(ours)
    lines = []
    if missing:
        lines.append(f"missing ({len(missing)}):\n{listed(sorted(missing))}")
    if unexpected:
        lines.append(
            f"without a place in a loralib checkpoint of bias={mode} ({len(unexpected)}):\n"
            f"{listed(sorted(unexpected))}"
        )
        if any(key.endswith(".base_layer.weight") for key in unexpected):
            lines.append(
                "PEFT adds the weights of an adapted embedding or output head; save_pretrained with "
                "save_embedding_layers=False leaves them out."
            )
    if lines:
        raise UserError(
            f"{source}: its tensors are not those of its configuration:\n" + "\n".join(lines)
        )
    inner = conv_bias_names(layers)
    return {inner.get(name, name): tensors[key] for key, name in ours.items() if key in rest}


def _layout(job: ConversionJob, written: dict[str, Tensor]) -> CheckpointLayout:
    """The keys' order of the checkpoint that the adapter came from, else the model's."""
    told = job.sidecar.checkpoint
    if told is None:
        return CheckpointLayout(keys=list(written))
    if set(told.keys) != set(written):
        lost, new = set(told.keys) - set(written), set(written) - set(told.keys)
        raise UserError(
            f"{job.source / RECORD} lists other tensors than this adapter makes:\n"
            f"{listed(sorted(lost | new))}\n"
            "Where the adapter was changed since, remove `checkpoint` from that file."
        )
    return told
