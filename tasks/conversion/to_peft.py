"""A loralib checkpoint becomes an adapter's folder that any PEFT loads."""

from collections import Counter
from collections.abc import Collection

from torch import Tensor

from tasks.conversion.adapter_folder import (
    adapted_modules,
    build_config,
    tensor_key,
    write_adapter,
)
from tasks.conversion.base_layers import BaseLayers, Layer
from tasks.conversion.biases import Biases, check_biases, conv_bias_names, is_causal_mask
from tasks.conversion.checkpoint import Checkpoint, read_checkpoint
from tasks.conversion.job import RECORD, Conversion, ConversionJob, ConvertedModule
from tasks.conversion.layers import LoraPair, to_peft
from tasks.conversion.listing import listed, listed_once
from tasks.conversion.record import completed_sidecar
from tasks.conversion.sidecar import CheckpointLayout, Sidecar, check_patterns, spec_of
from tasks.errors import StageFailed, UserError


def convert(job: ConversionJob, base: BaseLayers) -> Conversion:
    """Write the adapter's folder to `job.draft`.

    Raises: UserError with everything that does not fit the base or what was said of the checkpoint.
    """
    checkpoint = read_checkpoint(job.source, {name.split(".")[0] for name in base.names})
    source = job.source.name
    halves, others = _sorted_out(checkpoint.tensors, source)
    _check_modules(halves, base, source)
    _check_layout(job.sidecar, checkpoint.layout, source)
    check_patterns(job.sidecar, list(halves), source)

    mistakes: list[tuple[str, str]] = []
    layers: list[Layer] = []
    pairs: dict[str, LoraPair] = {}
    modules: list[ConvertedModule] = []
    for name, (a, b) in halves.items():
        try:
            base.settle(name, a.shape[-1] if a.dim() else 0)
            layer = base.layer(name)
            pairs[name], told = to_peft(layer, spec_of(job.sidecar, name), a, b)
        except UserError as error:
            mistakes.append((name, str(error)))
            continue
        layers.append(layer)
        modules.append(told)
    if mistakes:
        raise UserError(f"{source} does not fit {base.shown}:\n{listed_once(mistakes)}")

    masks = {name for name, tensor in others.items() if is_causal_mask(name, tensor)}
    masks -= set(base.tensors)
    inner = {theirs: ours for ours, theirs in conv_bias_names(layers).items()}
    named = {inner.get(n, n): tensor for n, tensor in others.items() if n not in masks}
    biases = check_biases(named, job.sidecar.bias, base.tensors, layers, source=source)

    layout = checkpoint.layout.model_copy(
        update={"keys": [key for key in checkpoint.layout.keys if key not in masks]}
    )
    notes = _notes(base, modules, checkpoint, masks)
    _write(job, base, pairs, biases)
    _write_record(job, modules, biases, layout)
    return Conversion(
        modules=modules, bias=biases.mode, num_biases=len(biases.tensors), notes=notes
    )


def _sorted_out(
    tensors: dict[str, Tensor], source: str
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """LoRA's pairs by module, and the rest. Raises: UserError for what no `lora_state_dict` holds."""
    if foreign := [key for key in tensors if key.endswith((".lora_A.weight", ".lora_embedding_A"))]:
        raise UserError(
            f"{source} holds {foreign[0]}, which is how PEFT names its tensors: it is an adapter of "
            "PEFT, and not a checkpoint of loralib. For the other direction give its folder and "
            "--to loralib."
        )
    halves: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    strange = []
    for key, tensor in tensors.items():
        module, _, last = key.rpartition(".")
        if last in ("lora_A", "lora_B"):
            halves.setdefault(module, {})[last] = tensor
        elif "bias" in key:
            others[key] = tensor
        else:
            strange.append(key)
    if not halves:
        raise UserError(
            f"{source} holds {len(tensors)} tensors and none of LoRA's (`<module>.lora_A`, "
            f"`<module>.lora_B`):\n{listed(list(tensors))}\n"
            "Save it with torch.save(lora.lora_state_dict(model), path)."
        )
    if strange:
        raise UserError(
            f"{source} is not only LoRA: {len(strange)} of its {len(tensors)} tensors are other "
            f"weights, as in a whole model's state dict:\n{listed(strange)}\n"
            "They would be lost in an adapter, and weights that were saved in eval mode have the "
            "adapter merged in. Save it with torch.save(lora.lora_state_dict(model), path)."
        )
    lone = [
        f"{module}.{'lora_B' if 'lora_A' in pair else 'lora_A'}"
        for module, pair in halves.items()
        if len(pair) == 1
    ]
    if lone:
        raise UserError(f"{source} lacks the other half of {len(lone)} pairs:\n{listed(lone)}")
    return {m: (pair["lora_A"], pair["lora_B"]) for m, pair in halves.items()}, others


def _check_modules(modules: Collection[str], base: BaseLayers, source: str) -> None:
    unknown = [module for module in modules if module not in base]
    if unknown:
        own = [name for name, module in base.adaptable()]
        raise UserError(
            f"{source} adapts {len(unknown)} modules that {base.shown} does not have:\n"
            f"{listed(unknown)}\n{base.likely(unknown[0]).strip()}\n"
            f"The base's modules that LoRA can adapt ({len(own)}):\n{listed(own)}\n"
            "Name the base that the checkpoint was trained on, or its class with --architecture."
        )


def _check_layout(sidecar: Sidecar, found: CheckpointLayout, source: str) -> None:
    """A sidecar that the way back wrote names every key: none may be missing, none be new."""
    if sidecar.checkpoint is None:
        return
    told = set(sidecar.checkpoint.keys)
    lines = [
        f"{label} ({len(names)}):\n{listed(sorted(names))}"
        for label, names in (
            ("missing", told - set(found.keys)),
            ("unexpected", set(found.keys) - told),
        )
        if names
    ]
    if lines:
        raise UserError(
            f"{source} does not hold the tensors that its sidecar lists:\n" + "\n".join(lines)
        )


def _write(
    job: ConversionJob, base: BaseLayers, pairs: dict[str, LoraPair], biases: Biases
) -> None:
    """Write the folder, and let PEFT prove that it reads every tensor with the scaling that is meant."""
    config = build_config(
        base, pairs, bias=biases.mode, base_name=job.base_name, base_commit=job.base_commit
    )
    extra = {tensor_key(name, pairs): tensor for name, tensor in biases.tensors.items()}
    adapted = {module.name: module for module in adapted_modules(base, config)}
    if others := set(adapted) ^ set(pairs):
        raise _not_as_asked(f"it adapts {len(adapted)} modules and not {len(pairs)}", min(others))
    tensors: dict[str, Tensor] = {}
    for name, pair in pairs.items():
        module = adapted[name]
        shapes = (tuple(pair.a.shape), tuple(pair.b.shape))
        for what, found, asked in (
            ("rank", module.r, pair.r),
            ("scale", module.scaling, pair.scaling),
            ("shapes", module.shapes, shapes),
        ):
            if found != asked:
                raise _not_as_asked(f"its {what} would be {found} and not {asked}", name)
        tensors |= {module.a_key: pair.a, module.b_key: pair.b}
    write_adapter(job.draft, config, {**tensors, **extra})


def _not_as_asked(what: str, module: str) -> StageFailed:
    return StageFailed(
        f"PEFT would read the converted adapter otherwise than it was meant: {what} (at {module}). "
        "Nothing was written; please report this with the checkpoint's sidecar and PEFT's version."
    )


def _write_record(
    job: ConversionJob,
    modules: list[ConvertedModule],
    biases: Biases,
    layout: CheckpointLayout,
) -> None:
    record = completed_sidecar(job, modules, biases.mode, layout)
    text = record.model_dump_json(indent=1, exclude_none=True)
    (job.draft / RECORD).write_text(text + "\n", encoding="utf-8")


def _notes(
    base: BaseLayers,
    modules: list[ConvertedModule],
    checkpoint: Checkpoint,
    masks: Collection[str],
) -> list[str]:
    notes = []
    if checkpoint.layout.container:
        told = f"tensors were found under {checkpoint.layout.container!r}"
        if checkpoint.left_out:
            told += f"; left out: {', '.join(checkpoint.left_out)}"
        notes.append(told)
    if checkpoint.layout.prefix:
        notes.append(f"{checkpoint.layout.prefix!r} before every name was taken off")
    if masks:
        notes.append(
            f"left out {len(masks)} causal masks that bias=all saves for being named `bias`; "
            "the base computes its own"
        )
    converted = {module.name for module in modules}
    own = Counter(name.rsplit(".", 1)[-1] for name, _ in base.adaptable())
    for last, count in Counter(name.rsplit(".", 1)[-1] for name in converted).items():
        if count < own[last]:
            notes.append(f"{count} of the base's {own[last]} modules named {last} are adapted")
    if base.ties_embeddings and any(module.kind == "Embedding" for module in modules):
        notes.append(
            "the base's output head is tied to its embedding: merging the adapter changes both, in "
            "loralib as in PEFT"
        )
    if not base.knows_convolutions and any(module.kind == "Conv2d" for module in modules):
        notes.append(
            "weights do not tell a convolution's dilation and padding mode: where they are not 1 and "
            "zeros, PEFT's adapter computes something else than loralib's"
        )
    return notes
