"""Entries of a `peft_config` that name modules or layers and match none: each is a mistake, however many match."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.suggest import did_you_mean
from tasks.training.matching import chosen_layers, layer_of
from tasks.training.targets import own_names

_PATTERNS = ("rank_pattern", "alpha_pattern")


def unmatched_entries(
    config: Mapping[str, Any],
    named: Sequence[str],
    adapted: Sequence[str],
    modules: Sequence[str] | None = None,
) -> Iterator[tuple[str, str]]:
    """(field, what is wrong and the way out) by PEFT's own rules of matching.

    `named` are the full names that `target_modules` matches, `adapted` those of them that get an adapter,
    `modules` all of the model's, None where they are not known.

    Raises: re.error for a pattern that is no regular expression.
    """
    for field in _PATTERNS:
        for pattern in config.get(field) or {}:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in adapted):
                yield field, _says(pattern, "no module that gets an adapter", own_names(adapted))
    exclude = config.get("exclude_modules") or ()
    if isinstance(exclude, str):
        if not any(re.fullmatch(exclude, name) for name in named):
            yield "exclude_modules", _says(exclude, "no target module", own_names(named))
    else:
        for entry in sorted(exclude):
            if not any(name == entry or name.endswith(f".{entry}") for name in named):
                yield "exclude_modules", _says(entry, "no target module", own_names(named))
    if modules is not None:
        for entry in config.get("modules_to_save") or ():
            if not any(name.endswith(entry) for name in modules):
                names = [n for n in own_names(modules) if not n.isdigit()]
                yield "modules_to_save", _says(entry, "no module", names)
    yield from _absent_layers(config, named)


def _absent_layers(config: Mapping[str, Any], named: Sequence[str]) -> Iterator[tuple[str, str]]:
    values = dict(config)
    layers = sorted({layer for n in named if (layer := layer_of(values, n)) is not None})
    absent = [layer for layer in chosen_layers(values) or () if layer not in layers]
    if absent and layers:
        yield (
            "layers_to_transform",
            f"the model has no layer {', '.join(map(str, absent))}; its layers with these modules are "
            f"{layers[0]} to {layers[-1]}. Correct it, or leave it out for all layers.",
        )


def _says(entry: str, nothing: str, names: Sequence[str]) -> str:
    hint = did_you_mean(entry, list(names))
    known = "" if hint.startswith("Did") else f"There are {', '.join(names)}. "
    return f"`{entry}` matches {nothing}. {known}{hint if hint.startswith('Did') else ''}".rstrip()
