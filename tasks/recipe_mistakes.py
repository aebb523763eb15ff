"""What pydantic found wrong with a recipe, as lines that a person can act on."""

import functools
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from tasks.names import NAME_IN_WORDS, NAME_PATTERN, slug
from tasks.recipe_file import Document, Loc, dotted_name
from tasks.suggest import did_you_mean
from tasks.training import fields

_KINDS = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of fields",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "none_required": "empty (null)",
}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}

_PATTERNS = {
    NAME_PATTERN: NAME_IN_WORDS,
    r"^[^/:]+$": "has no slash and no colon, which MLflow's addresses are made of",
    r"^[\w.-]+$": "has letters, digits, dots, dashes and underscores only",
    r"^[\w.-]+(/[\w.-]+)?$": "is `owner/name` or `name`, as the Hub's page shows it",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "has letters, digits and underscores only, and no digit first",
}
"""What a settings' pattern allows, as the rest of the sentence `a name ...`."""


def mistakes_of(error: ValidationError, document: Document, model: type[BaseModel]) -> list[str]:
    """One line a mistake: `file:line: field: what is wrong. Did you mean ...?`."""
    by_loc: dict[Loc, list[str]] = {}
    for detail in error.errors(include_url=False):
        loc = _written_loc(detail["loc"], document, missing=detail["type"] == "missing")
        by_loc.setdefault(loc, []).append(_what(dict(detail), loc, document, model))
    lines = []
    for loc, texts in by_loc.items():
        # A value that fits no member of a union has one complaint for each member.
        text = " or ".join(dict.fromkeys(texts))
        ending = "" if text.endswith((".", "?")) else "."
        lines.append(document.line(loc, f"{text}{ending}"))
    return lines


def _written_loc(loc: Loc, document: Document, *, missing: bool) -> Loc:
    """The place in the file: pydantic also names the members of unions, which nobody wrote."""
    written: Loc = ()
    value: Any = document.data
    for position, step in enumerate(loc):
        is_last = position == len(loc) - 1
        if _holds(value, step):
            value = value[step]
        elif not (is_last and missing):
            continue
        written = (*written, step)
    return written


def _holds(value: Any, step: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(step, int) and step < len(value)
    return isinstance(value, dict) and step in value


def _what(detail: dict[str, Any], loc: Loc, document: Document, model: type[BaseModel]) -> str:
    kind, value = str(detail["type"]), document.get(loc)
    context = detail.get("ctx", {})
    if kind == "missing":
        return "is missing. " + _meaning(loc, model)
    if kind == "extra_forbidden":
        return _unknown(loc, document, model)
    if kind == "field":
        return str(context["what"])
    if kind == "value_error":
        return str(context["error"])
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _tag(detail, context)
    if kind == "literal_error":
        names = _names(str(context["expected"]))
        hint = did_you_mean(value, names) if isinstance(value, str) else ""
        hint = hint if hint.startswith("Did") else ""
        return f"must be one of {', '.join(names)}, not {fields.shown(value)}. {hint}".rstrip()
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}, not {fields.shown(value)}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"must be {words} {context[name]}, not {fields.shown(value)}"
    if kind == "string_pattern_mismatch":
        return _pattern(str(context["pattern"]), value)
    message = str(detail["msg"])
    return f"{message[0].lower()}{message[1:]} (given: {fields.shown(value)})"


def _pattern(pattern: str, value: Any) -> str:
    words = _PATTERNS.get(pattern)
    if words is None:
        return f"must match {pattern}, not {fields.shown(value)}"
    hint = f". How about `{slug(value)}`?" if pattern == NAME_PATTERN and value else ""
    return f"a name {words}; this is {fields.shown(value)}{hint}"


def _unknown(loc: Loc, document: Document, model: type[BaseModel]) -> str:
    name = str(loc[-1])
    here = _model_at(loc[:-1], document, model)
    allowed = list(here.model_fields) if here is not None else []
    hint = did_you_mean(name, allowed)
    if not hint.startswith("Did") and (homes := _homes().get(name)):
        return f"there is no such field here. `{name}` belongs under {' or '.join(homes)}."
    return f"there is no such field. {hint}".rstrip()


def _tag(detail: dict[str, Any], context: dict[str, Any]) -> str:
    key = str(context["discriminator"]).strip("'")
    if detail["type"] == "union_tag_not_found":
        if not isinstance(detail["input"], dict):
            return f"must be a mapping with `{key}`, not {fields.shown(detail['input'])}"
        return f"`{key}` is missing: it says what kind this is"
    names = _names(str(context["expected_tags"]))
    hint = did_you_mean(str(context["tag"]), names)
    return f"`{key}` must be one of {', '.join(names)}, not '{context['tag']}'. {hint}".rstrip()


def _meaning(loc: Loc, model: type[BaseModel]) -> str:
    """The first sentence of the field's documentation, where there is one."""
    field = _field_at(loc, model)
    text = (field.description or "") if field is not None else ""
    if not text and field is not None:
        text = next((m.__doc__ or "" for m in _models_in(field.annotation)), "")
    return " ".join(text.split()).split(". ")[0]


def _names(text: str) -> list[str]:
    """`'a', 'b' or 'c'` -> a, b, c."""
    return [part.strip().strip("'") for part in text.replace(" or ", ", ").split(",")]


def _field_at(loc: Loc, model: type[BaseModel]) -> FieldInfo | None:
    found: FieldInfo | None = None
    models = [model]
    for step in loc:
        if isinstance(step, int):
            continue
        found = next((m.model_fields[step] for m in models if step in m.model_fields), None)
        if found is None:
            return None
        models = list(_models_in(found.annotation))
    return found


def _model_at(loc: Loc, document: Document, model: type[BaseModel]) -> type[BaseModel] | None:
    """The settings class of the mapping at `loc`; in a union the one that its `type` names."""
    field = _field_at(loc, model)
    candidates = [model] if not loc else list(_models_in(field.annotation)) if field else []
    given = document.get((*loc, "type"))
    for candidate in candidates:
        tag = candidate.model_fields.get("type")
        if tag is None or given in typing.get_args(tag.annotation):
            return candidate
    return None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


@functools.cache
def _homes() -> dict[str, list[str]]:
    """Where each field's name is at home, for a field that was written one level too high or low."""
    from tasks.recipe import Recipe

    homes: dict[str, list[str]] = {}

    def note(names: Any, where: str) -> None:
        for name in names:
            homes.setdefault(name, []).append(where)

    note(Recipe.model_fields, "the top of the recipe")
    for section, field in Recipe.model_fields.items():
        for inner in _models_in(field.annotation):
            note(inner.model_fields, dotted_name((section,)))
    note(fields.peft_fields("LORA"), "training.peft_config")
    note(fields.training_fields("sft"), "training.training_config")
    return homes
