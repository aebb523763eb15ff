"""Fields of a `peft_config` that PEFT reads as regular expressions: they must be ones."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_FIELDS = ("rank_pattern", "alpha_pattern", "layers_pattern")
"""The others are judged together with the base's own names (`tasks.module_fit`)."""


def broken_patterns(peft_config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(field, what is wrong) for patterns that are no regular expressions."""
    wrong = []
    for field, pattern in _patterns(peft_config):
        try:
            re.compile(pattern)
        except re.error as error:
            text = (
                f"`{pattern}` is no regular expression ({error}). Correct it, or write plain names"
            )
            wrong.append((field, text))
    return wrong


def _patterns(peft_config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for field in _FIELDS:
        value = peft_config.get(field)
        if isinstance(value, str):
            yield field, value
        elif isinstance(value, Mapping | list | tuple):
            yield from ((field, key) for key in value if isinstance(key, str))
