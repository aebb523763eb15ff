"""Which modules an adapter is put on, by PEFT's own rules and without PEFT.

PEFT's `check_target_module_exists` is the measure; a test compares the two.
"""

import re
from collections.abc import Sequence
from typing import Any

from tasks.training.targets import ALL_LINEAR, all_linear_names


def adapted_modules(
    config: dict[str, Any], linear: Sequence[str], head: str | None = None
) -> list[str]:
    """Those of the `linear` modules (full dotted names) that a `peft_config` with targets adapts.

    Raises: re.error where a string is no regular expression.
    """
    targets = config.get("target_modules")
    if targets is None:
        return []
    if targets == ALL_LINEAR:
        # As the worker writes it: in short names where they mean the same.
        targets = all_linear_names(linear, head) or [name for name in linear if name != head]
    return [
        name
        for name in linear
        if not excluded(config, name)
        and _targeted(targets, name)
        and (isinstance(targets, str) or name in targets or _in_chosen_layer(config, name))
    ]


def excluded(config: dict[str, Any], name: str) -> bool:
    """Whether `exclude_modules` or `modules_to_save` takes the module out."""
    exclude = config.get("exclude_modules")
    if exclude and _targeted(exclude, name):
        return True
    saved = config.get("modules_to_save") or ()
    return any(re.match(rf"(^|.*\.){module}($|\..*)", name) for module in saved)


def layer_of(config: dict[str, Any], name: str) -> int | None:
    """The number of the layer that the module is in, read as `layers_pattern` says; None outside of layers."""
    patterns = config.get("layers_pattern") or ()
    if not patterns:
        found = re.match(r".*?\.[^.]*\.(\d+)\.", name)
        return int(found[1]) if found else None
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if found := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name):
            return int(found[1])
    return None


def chosen_layers(config: dict[str, Any]) -> list[int] | None:
    """The layers that `layers_to_transform` names; None for all."""
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return None
    return [layers] if isinstance(layers, int) else list(layers)


def _in_chosen_layer(config: dict[str, Any], name: str) -> bool:
    layers = chosen_layers(config)
    return layers is None or layer_of(config, name) in layers


def _targeted(targets: str | Sequence[str], name: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)
