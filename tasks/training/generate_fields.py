"""Write `fields.json`, the table of PEFT's and TRL's configuration fields, from the installed classes.

Run `python -m tasks.training.generate_fields` after moving peft, trl or transformers in
pyproject.toml. The recipe is validated against the table, so that it needs neither library.
"""

import dataclasses
import enum
import importlib
import json
import re
import types
import typing
import warnings
from typing import Any

from tasks.training.fields import TABLE, Fragment, problem

METHODS = {
    "sft": "trl.SFTConfig",
    "dpo": "trl.DPOConfig",
    "kto": "trl.KTOConfig",
    "orpo": "trl.experimental.orpo.ORPOConfig",
}
"""The TRL configuration class of each `training.method`."""

UNSUPPORTED_PEFT_TYPES = {
    "XLORA": "it mixes adapters that exist already",
    "POLY": "it needs a task id in every row",
    "MULTITASK_PROMPT_TUNING": "it needs a task id in every row",
    "CPT": "it needs the kind of every token (example, instruction, answer) in every row",
}
"""PEFT types that cannot be trained on plain conversations, with the reason."""

LIMITS: dict[str, dict[str, float]] = {
    "r": {"minimum": 1},
    "lora_alpha": {"minimum": 1},
    "lora_dropout": {"minimum": 0, "exclusiveMaximum": 1},
    "num_virtual_tokens": {"minimum": 1},
    "learning_rate": {"exclusiveMinimum": 0},
    "per_device_train_batch_size": {"minimum": 1},
    "per_device_eval_batch_size": {"minimum": 1},
    "gradient_accumulation_steps": {"minimum": 1},
    "num_train_epochs": {"exclusiveMinimum": 0},
    "warmup_steps": {"minimum": 0},
    "weight_decay": {"minimum": 0},
    "max_grad_norm": {"minimum": 0},
    "logging_steps": {"exclusiveMinimum": 0},
    "save_steps": {"exclusiveMinimum": 0},
    "save_total_limit": {"minimum": 1},
    "adam_beta1": {"minimum": 0, "exclusiveMaximum": 1},
    "adam_beta2": {"minimum": 0, "exclusiveMaximum": 1},
    "adam_epsilon": {"exclusiveMinimum": 0},
    "dataloader_num_workers": {"minimum": 0},
}
"""Bounds that the classes check late or never; a wrong number is found before a GPU is touched."""


def build_table() -> dict[str, Any]:
    """The table: JSON Schema fragments per field, shared ones once, with the versions they are of."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    peft = {
        str(peft_type.value): _fields_of(cls)
        for peft_type, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if peft_type.value not in UNSUPPORTED_PEFT_TYPES
    }
    for name, fields in peft.items():
        if "lora_ga_config" in fields:
            # The class takes it, and its annotation forgets it.
            names, *_ = fields["init_lora_weights"]["anyOf"][0]["anyOf"]
            names["enum"].append("lora_ga")
        fields["peft_type"] = {"enum": [name], "description": "The PEFT method."}
        fields["task_type"] = {"enum": ["CAUSAL_LM"], "description": "The kind of model."}
    training = {method: _fields_of(_load(path)) for method, path in METHODS.items()}
    return {
        "versions": {name: _minor(name) for name in ("peft", "trl", "transformers")},
        "unsupported_peft_types": UNSUPPORTED_PEFT_TYPES,
        "renamed_at_loading": _renamed_at_loading(),
        "peft": _share(peft),
        "training": _share(training),
    }


def render(table: dict[str, Any]) -> str:
    """The table as the committed file's text: sorted, one field a line, so that a diff can be read."""
    lines = ["{"]
    lines.append(f' "versions": {json.dumps(table["versions"])},')
    lines.append(f' "unsupported_peft_types": {json.dumps(table["unsupported_peft_types"])},')
    lines.append(f' "renamed_at_loading": {json.dumps(table["renamed_at_loading"])},')
    for part in ("peft", "training"):
        lines.append(f' "{part}": {{')
        groups = []
        for group, fields in sorted(table[part].items()):
            rows = ",\n".join(
                f"   {json.dumps(name)}: {json.dumps(fragment, sort_keys=True)}"
                for name, fragment in sorted(fields.items())
            )
            groups.append(f'  "{group}": {{\n{rows}\n  }}')
        lines.append(",\n".join(groups))
        lines.append(" }," if part == "peft" else " }")
    return "\n".join([*lines, "}", ""])


def main() -> None:
    """Write the table."""
    TABLE.write_text(render(build_table()), encoding="utf-8")


def _load(path: str) -> type:
    module, _, name = path.rpartition(".")
    with warnings.catch_warnings():
        # TRL warns that what lies under `trl.experimental` may move; the committed table is the guard.
        warnings.simplefilter("ignore")
        cls = getattr(importlib.import_module(module), name)
    assert isinstance(cls, type)
    return cls


def _renamed_at_loading() -> list[str]:
    """Model types of causal language models whose weights transformers renames, splits or fuses."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(
        model_type
        for model_type, classes in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
        for name in (model_type, *([classes] if isinstance(classes, str) else classes))
        if get_checkpoint_conversion_mapping(name)
    )


def _minor(package: str) -> str:
    from importlib.metadata import version

    return ".".join(version(package).split(".")[:2])


def _share(groups: dict[str, dict[str, Fragment]]) -> dict[str, dict[str, Fragment]]:
    """Move fields that are equal in every group into the group `*`."""
    first, *others = groups.values()
    common = {
        name: fragment
        for name, fragment in first.items()
        if all(other.get(name) == fragment for other in others)
    }
    shared = {
        group: {name: fragment for name, fragment in fields.items() if name not in common}
        for group, fields in groups.items()
    }
    return {"*": common, **shared}


def _fields_of(cls: type) -> dict[str, Fragment]:
    hints = typing.get_type_hints(cls)
    return {
        field.name: _fragment(field, hints[field.name])
        for field in dataclasses.fields(cls)
        if field.init
    }


def _fragment(field: Any, hint: Any) -> Fragment:
    fragment = _schema_of(hint)
    choices = field.metadata.get("choices")
    if choices and "enum" not in fragment:
        nullable = type(None) in typing.get_args(hint)
        fragment = {"enum": [*sorted({str(c) for c in choices}), *([None] if nullable else [])]}
    default = _plain(field.default)
    limited = fragment | LIMITS.get(field.name, {})
    # OFT's rank may be 0: a bound that the class's own default breaks is not a bound of that class.
    if default is dataclasses.MISSING or problem(default, limited) is None:
        fragment = limited
    if default is not dataclasses.MISSING:
        fragment["default"] = default
    text = _first_sentence(str(field.metadata.get("help", "")))
    if text:
        fragment["description"] = text
    return fragment


def _schema_of(hint: Any) -> Fragment:
    """A JSON Schema fragment for a type annotation; `{}` (anything) for one that has no YAML form."""
    simple = {
        bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", list: "array",
        type(None): "null",
    }  # fmt: skip
    if hint in simple:
        return {"type": simple[hint]}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments)
    if origin is typing.Literal:
        return _literal(arguments)
    if origin in (list, tuple, set):
        items = [a for a in arguments if a is not Ellipsis]
        return {"type": "array", "items": _union(tuple(items))} if items else {"type": "array"}
    if origin is dict:
        values = _schema_of(arguments[1])
        return {"type": "object"} | ({"additionalProperties": values} if values else {})
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"enum": [_plain(member) for member in hint]}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return {
            "type": "object",
            "properties": _fields_of(hint),
            "additionalProperties": False,
        }
    return {}


def _union(arguments: tuple[Any, ...]) -> Fragment:
    # A choice of names that also admits `str` admits it for the names' own spelling.
    named = any(
        any(isinstance(value, str) for value in typing.get_args(a))
        if typing.get_origin(a) is typing.Literal
        else isinstance(a, type) and issubclass(a, enum.Enum)
        for a in arguments
    )
    # A sub-configuration class that also admits `dict` admits it for the same fields.
    structured = any(dataclasses.is_dataclass(a) for a in arguments)
    kept = [
        _schema_of(a)
        for a in arguments
        if not (named and a is str) and not (structured and a is dict)
    ]
    if {} in kept:
        return {}
    plain = [fragment["type"] for fragment in kept if set(fragment) == {"type"}]
    rich = [fragment for fragment in kept if set(fragment) != {"type"}]
    plain = sorted(set(plain), key=plain.index)
    if not rich:
        return {"type": plain[0] if len(plain) == 1 else plain}
    if not plain and len(rich) == 1:
        return rich[0]
    return {"anyOf": [*rich, *({"type": name} for name in plain)]}


def _literal(values: tuple[Any, ...]) -> Fragment:
    # PEFT writes a family of names as `pissa_niter_[number of iters]`.
    families = [value for value in values if isinstance(value, str) and "[" in value]
    names = [value for value in values if value not in families]
    if not families:
        return {"enum": names}
    patterns = [f"^{re.escape(family.split('[')[0])}[0-9]+$" for family in families]
    return {"anyOf": [{"enum": names}, *({"type": "string", "pattern": p} for p in patterns)]}


def _plain(value: Any) -> Any:
    """The value as JSON has it; MISSING for what has no plain form."""
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return dataclasses.MISSING


def _first_sentence(text: str) -> str:
    """Help texts are pages long; an editor's tooltip wants their first sentence."""
    text = re.sub(r"</?a\b[^>]*>", "", " ".join(text.replace("%%", "%").split()))
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z`'\"])", text, maxsplit=1)[0]
    return sentence if len(sentence) <= 240 else sentence[:237].rsplit(" ", 1)[0] + " ..."


if __name__ == "__main__":
    main()
