"""The recipe's JSON Schema, from which editors complete and check a recipe while it is typed."""

import json
from typing import Any

from tasks.methods import ROWS, Method
from tasks.recipe import Recipe
from tasks.training import fields, old_names, owned
from tasks.training.defaults import resolve_peft, resolve_training

FILE_NAME = "recipe.schema.json"

Fragment = fields.Fragment


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe, with every field of the two training dictionaries.

    Names that are only tolerated (translated or dropped with a warning) are marked `deprecated`.
    """
    schema = Recipe.model_json_schema()
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "A recipe of loraline",
    }
    definitions = schema["$defs"]
    base = schema["properties"]["base"]
    reference = {"$ref": base.get("$ref", "#/$defs/BaseSettings")}
    schema["properties"]["base"] = {
        "description": base.get("description", ""),
        "anyOf": [{"type": "string"}, reference],
    }
    training = definitions["TrainingSettings"]["properties"]
    training["peft_config"] |= _peft_config(definitions)
    training["training_config"] |= _training_config(definitions)
    definitions["TrainingSettings"]["allOf"] = _methods()
    return schema


def render(schema: dict[str, Any]) -> str:
    """The schema as the committed file's text: what fits on a line stands on one, so that a diff reads."""
    return _lines(schema, "") + "\n"


def _lines(value: Any, indent: str) -> str:
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict) or len(indent) + len(flat) <= 160 or not _is_nested(value):
        return flat
    inner = indent + " "
    rows = (f"{inner}{json.dumps(key)}: {_lines(item, inner)}" for key, item in value.items())
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"


def _is_nested(value: dict[str, Any]) -> bool:
    return any(isinstance(item, dict) for item in value.values())


def _peft_config(definitions: dict[str, Any]) -> Fragment:
    types = fields.peft_types()
    branches = []
    for name in types:
        definitions[f"peft_{name}"] = _closed(
            fields.peft_fields(name), owned.PEFT, resolve_peft({"peft_type": name}), {}
        )
        chosen: Fragment = {"properties": {"peft_type": {"const": name}}}
        if name != "LORA":
            # Without `required`, a recipe that names no type would match every branch.
            chosen["required"] = ["peft_type"]
        branches.append({"if": chosen, "then": {"$ref": f"#/$defs/peft_{name}"}})
    return {
        "type": "object",
        "additionalProperties": True,
        "properties": {
            "peft_type": {"enum": types, "default": "LORA", "description": "The PEFT method."}
        },
        "allOf": branches,
    }


def _training_config(definitions: dict[str, Any]) -> Fragment:
    """Any object; `_methods` says which by `method`, that stands beside it."""
    for method in ROWS:
        definitions[f"training_{method}"] = _config_of(method)
    return {"type": "object", "additionalProperties": True}


def _methods() -> list[Fragment]:
    branches = []
    for method in ROWS:
        chosen: Fragment = {"properties": {"method": {"const": method}}}
        if method != "sft":
            # Without `required`, a recipe that names no method would match every branch.
            chosen["required"] = ["method"]
        fields_of = {"training_config": {"$ref": f"#/$defs/training_{method}"}}
        branches.append({"if": chosen, "then": {"properties": fields_of}})
    return branches


def _config_of(method: Method) -> Fragment:
    old: dict[str, Fragment] = {
        name: {"description": f"Renamed: write `{new}`.", "deprecated": True}
        for name, new in old_names.RENAMED.items()
    }
    old |= {
        name: {"description": f"Removed: {why}.", "deprecated": True}
        | ({} if droppable is None else {"enum": list(droppable)})
        for name, (why, droppable) in old_names.REMOVED.items()
    }
    old |= {
        name: {"description": f"Write {new} instead.", "deprecated": True}
        for name, new in old_names.MOVED.items()
    }
    return _closed(
        fields.training_fields(method), owned.of(method), resolve_training({}, method), old
    )


def _closed(
    known: dict[str, Fragment],
    ours: dict[str, owned.Owned],
    defaults: dict[str, Any],
    old: dict[str, Fragment],
) -> Fragment:
    """An object of exactly these fields."""
    properties: dict[str, Fragment] = {}
    for name, fragment in known.items():
        if name not in ours:
            properties[name] = _ordered(fragment | _default(name, defaults))
    for name, field in ours.items():
        if field.harmless:
            properties[name] = {
                "description": f"Not set here: {field.instead}.",
                "deprecated": True,
                "enum": list(field.harmless),
            }
    # Old names last: a seed that equals the recipe's is tolerated whatever it is.
    return {
        "type": "object",
        "properties": dict(sorted((properties | old).items())),
        "additionalProperties": False,
    }


def _default(name: str, defaults: dict[str, Any]) -> Fragment:
    return {"default": defaults[name]} if name in defaults else {}


def _ordered(fragment: Fragment) -> Fragment:
    """Description first: it is what a person reads in the file."""
    first = [key for key in ("description", "type", "enum", "anyOf") if key in fragment]
    rest = [key for key in fragment if key not in first]
    return {key: fragment[key] for key in [*first, *rest]}
