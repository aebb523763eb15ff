"""The fields of PEFT's and TRL's configuration classes, read from the generated table."""

import functools
import json
import math
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.suggest import did_you_mean

TABLE = Path(__file__).with_name("fields.json")

_SAME_CLASS = {"pretraining": "sft"}

Fragment = dict[str, Any]
"""A JSON Schema fragment: `type`, `enum`, `anyOf`, `items`, `properties`, `pattern`, bounds."""


def peft_types() -> list[str]:
    """The PEFT types that a recipe may name."""
    return sorted(name for name in _table()["peft"] if name != "*")


def unsupported_peft_types() -> dict[str, str]:
    """PEFT types that exist but cannot be trained on conversations, with the reason."""
    return dict(_table()["unsupported_peft_types"])


def renamed_at_loading() -> frozenset[str]:
    """Model types whose modules bear other names than the weights in their files."""
    return frozenset(_table()["renamed_at_loading"])


def peft_fields(peft_type: str) -> dict[str, Fragment]:
    """Every field of the PEFT class that `peft_type` names. KeyError for an unknown type."""
    return {**_table()["peft"]["*"], **_table()["peft"][peft_type]}


def training_fields(method: str) -> dict[str, Fragment]:
    """Every field of the TRL configuration class of `training.method`. KeyError for an unknown one."""
    table = _table()["training"]
    return {**table["*"], **table[_SAME_CLASS.get(method, method)]}


def trl_class(method: str) -> str:
    """The method that the class is named after, as TRL writes it."""
    return _SAME_CLASS.get(method, method).upper()


def problem(value: Any, fragment: Fragment) -> str | None:
    """What is wrong with a value, as the end of a sentence (`must be an integer, not 'x'`), or None."""
    wanted = fragment.get("type")
    kinds = [wanted] if isinstance(wanted, str) else wanted
    if kinds is not None and not any(_is_kind(value, kind) for kind in kinds):
        return f"must be {_expected(fragment)}, not {shown(value)}"
    if "enum" in fragment and not any(_same(value, choice) for choice in fragment["enum"]):
        return _not_this(value, fragment)
    if "anyOf" in fragment:
        problems = [problem(value, option) for option in fragment["anyOf"]]
        if all(problems):
            # The option of the right kind knows what is wrong inside; the others only name their kind.
            inner = [
                text
                for text, option in zip(problems, fragment["anyOf"], strict=True)
                if text and "type" in option and _is_kind(value, option["type"])
            ]
            return inner[0] if inner else _not_this(value, fragment)
    if "pattern" in fragment and not re.search(fragment["pattern"], str(value)):
        return f"must match {fragment['pattern']}, not {shown(value)}"
    return _bounds_problem(value, fragment) or _inner_problem(value, fragment)


def shown(value: Any) -> str:
    """A value as a person wrote it, shortened; texts are quoted so that `'3'` is seen not to be `3`."""
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _not_this(value: Any, fragment: Fragment) -> str:
    """`must be ..., not 'cosin'. Did you mean `cosine`?`."""
    text = f"must be {_expected(fragment)}, not {shown(value)}"
    hint = did_you_mean(value, _choices(fragment)) if isinstance(value, str) else ""
    return f"{text}. {hint}" if hint.startswith("Did") else text


def _choices(fragment: Fragment) -> Iterator[str]:
    yield from (choice for choice in fragment.get("enum", ()) if isinstance(choice, str))
    for option in fragment.get("anyOf", ()):
        yield from _choices(option)


def _bounds_problem(value: Any, fragment: Fragment) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return f"must be a finite number, not {value}"
    for name, is_broken, words in _BOUNDS:
        if name in fragment and is_broken(value, fragment[name]):
            return f"must be {words} {fragment[name]}, not {value}"
    return None


def _inner_problem(value: Any, fragment: Fragment) -> str | None:
    if isinstance(value, list) and "items" in fragment:
        for position, item in enumerate(value, start=1):
            if found := problem(item, fragment["items"]):
                return f"item {position} {found}"
    if isinstance(value, dict):
        known = fragment.get("properties", {})
        rest = fragment.get("additionalProperties", {})
        for name, item in value.items():
            if name not in known and rest is False:
                return f"has no field `{name}`; it has {', '.join(f'`{k}`' for k in known)}"
            if found := problem(item, known.get(name, rest)):
                return f"`{name}` {found}"
    return None


def _expected(fragment: Fragment) -> str:
    """The fragment in words: `an integer or a list of texts`."""
    if "enum" in fragment:
        choices = [json.dumps(choice).strip('"') for choice in fragment["enum"]]
        return choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)
    if "anyOf" in fragment:
        return " or ".join(dict.fromkeys(_expected(option) for option in fragment["anyOf"]))
    if "pattern" in fragment:
        return f"a text that matches {fragment['pattern']}"
    kinds = fragment.get("type", [])
    words = [_WORDS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    if words == ["a list"] and (inner := fragment.get("items", {}).get("type")) in _PLURALS:
        return f"a list of {_PLURALS[inner]}"
    return " or ".join(words) or "another value"


_BOUNDS = (
    ("minimum", operator.lt, "at least"),
    ("exclusiveMinimum", operator.le, "above"),
    ("maximum", operator.gt, "at most"),
    ("exclusiveMaximum", operator.ge, "below"),
)
_WORDS = {
    "boolean": "true or false",
    "integer": "an integer",
    "number": "a number",
    "string": "a text",
    "array": "a list",
    "object": "a mapping",
    "null": "empty (null)",
}
_PLURALS = {"string": "texts", "integer": "integers", "number": "numbers"}


def _is_kind(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        # In Python `True` is an integer; in a recipe `r: true` is a mistake.
        return kind == "boolean"
    kinds: dict[str, tuple[type, ...]] = {
        "boolean": (),
        "integer": (int,),
        "number": (int, float),
        "string": (str,),
        "array": (list, tuple),
        "object": (dict,),
        "null": (type(None),),
    }
    return isinstance(value, kinds[kind])


def _same(value: Any, choice: Any) -> bool:
    return type(value) is type(choice) and bool(value == choice)


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table
