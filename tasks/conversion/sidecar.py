"""What a loralib checkpoint does not say of itself: rank, alpha, enabled blocks, base; by flags or a file."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, ValidationError

from tasks.errors import UserError
from tasks.files import expanded
from tasks.settings import Settings
from tasks.suggest import did_you_mean

BiasMode = Literal["none", "all", "lora_only"]
"""The three modes of loralib's `mark_only_lora_as_trainable`; PEFT's `bias` has the same names."""

Rank = Annotated[int, Field(ge=1, strict=True)]
Alpha = Annotated[FiniteFloat, Field(gt=0)]
EnableLora = Annotated[list[bool], Field(min_length=1)]


class ModuleSettings(Settings):
    """What differs for some modules."""

    r: Rank | None = None
    """loralib's `r` of these modules. A wrong one does not fit the tensors and is refused."""
    alpha: Alpha | None = None
    """loralib's `lora_alpha`. Nothing can check it: a wrong one scales the adapter's effect wrongly."""
    enable_lora: EnableLora | None = None
    """Which of the equal blocks of a `MergedLinear` are adapted, from the first output row on. Its
    length is the number of blocks; left out, the module is a plain `Linear`."""


class CheckpointLayout(Settings):
    """How the tensors lay in the loralib file, so that the way back writes the same file."""

    keys: list[str]
    """Every key in the file's order, without `prefix`."""
    prefix: str = ""
    """What stood before every key: a wrapper's name, as `module.`."""
    container: str | None = None
    """The entry of the file's dictionary that holds the tensors; None: the file is that dictionary."""


class Sidecar(Settings):
    """The file beside a loralib checkpoint, and `loralib.json` in an adapter's folder."""

    base: str | None = None
    """Folder of the base model (relative to this file) or its Hub id."""
    architecture: str | None = None
    """Class of transformers that the checkpoint's model is, where it is not the one that the base's
    config.json names. Module names follow from it."""
    bias: BiasMode | None = None
    """The mode of `lora_state_dict`. Left out, it is read off the checkpoint's keys; given, missing
    and unexpected biases are refused."""
    r: Rank | None = None
    """loralib's `r` of all modules that `modules` does not name."""
    alpha: Alpha | None = None
    """loralib's `lora_alpha` of all modules that `modules` does not name."""
    modules: dict[str, ModuleSettings] = Field(default_factory=dict)
    """By name: a full dotted name, or its last parts (`attn.c_attn`). The longer name wins."""
    checkpoint: CheckpointLayout | None = None
    """Written by the conversion; not meant to be written by hand."""


@dataclass(frozen=True)
class LoraSpec:
    """loralib's constructor arguments of one module; None where nobody said."""

    r: int | None
    alpha: float | None
    enable_lora: tuple[bool, ...] | None


def read_sidecar(path: Path) -> Sidecar:
    """A JSON or YAML file. A relative base starts at the file's folder.

    Raises: UserError when it cannot be read, with every field that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}.") from error
    sidecar = parse_sidecar(_parsed(text, path), str(path))
    base = sidecar.base
    if base is not None and base.startswith(("./", "../", "~")):
        local = str((path.parent / expanded(base)).resolve())
        return sidecar.model_copy(update={"base": local})
    return sidecar


def parse_sidecar(value: Any, where: str) -> Sidecar:
    """Check the fields. Raises: UserError with every field that is wrong."""
    try:
        return Sidecar.model_validate(value)
    except ValidationError as error:
        lines = [f"{where} does not describe a loralib checkpoint:"]
        for detail in error.errors(include_url=False):
            name = ".".join(str(step) for step in detail["loc"]) or "the file"
            told = f"  {name}: {detail['msg']}."
            if detail["type"] == "extra_forbidden":
                inside = detail["loc"][:1] == ("modules",)
                fields = ModuleSettings.model_fields if inside else Sidecar.model_fields
                told = f"  {name}: there is no such field. " + did_you_mean(
                    str(detail["loc"][-1]), fields
                )
            lines.append(told.rstrip())
        raise UserError("\n".join(lines)) from error


def with_flags(sidecar: Sidecar, flags: Sidecar) -> Sidecar:
    """What the flags say, and what the file says where they are silent.

    Within both, what names a module goes before what speaks for all.
    """
    given = flags.model_dump(exclude_none=True, exclude={"modules"})
    modules = dict(sidecar.modules)
    for name, told in flags.modules.items():
        before = modules.get(name, ModuleSettings())
        modules[name] = before.model_copy(update=told.model_dump(exclude_none=True))
    return sidecar.model_copy(update={**given, "modules": modules})


def names_module(pattern: str, module: str) -> bool:
    """Whether `pattern` is the module's full dotted name or the last parts of it."""
    return module == pattern or module.endswith(f".{pattern}")


def spec_of(sidecar: Sidecar, module: str) -> LoraSpec:
    """What is said of this module, field by field from the longest name that says it."""
    told = [sidecar.modules[p] for p in sorted(sidecar.modules, key=len) if names_module(p, module)]
    r, alpha, enable_lora = sidecar.r, sidecar.alpha, None
    for settings in told:
        r = r if settings.r is None else settings.r
        alpha = alpha if settings.alpha is None else settings.alpha
        enable_lora = enable_lora if settings.enable_lora is None else settings.enable_lora
    return LoraSpec(r, alpha, None if enable_lora is None else tuple(enable_lora))


def check_patterns(sidecar: Sidecar, modules: Collection[str], where: str) -> None:
    """Refuse names that match none of the adapted modules: what they say would be lost silently."""
    idle = [p for p in sidecar.modules if not any(names_module(p, m) for m in modules)]
    if idle:
        endings = {".".join(m.split(".")[-n:]) for m in modules for n in (1, 2)} | set(modules)
        told = "\n".join(f"  {p}. {did_you_mean(p, endings)}".rstrip() for p in sorted(idle))
        raise UserError(f"No module that {where} adapts has this name:\n{told}")


def _parsed(text: str, path: Path) -> Any:
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}.") from error
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        raise UserError(f"{path} is not YAML: {told}.") from error
