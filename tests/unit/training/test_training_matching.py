"""Which modules an adapter is put on: our rule is PEFT's."""

import itertools
from typing import Any

import pytest

from tasks.training.matching import adapted_modules

MODULES = [
    f"model.layers.{layer}.{name}"
    for layer in range(3)
    for name in ("self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj")
]
MODULES += ["model.layers.1.mlp.experts.0.down_proj", "model.projector", "vision.blocks.2.qkv_proj"]
TARGETS: list[Any] = [
    ["qkv_proj"],
    ["down_proj", "projector"],
    ["self_attn.o_proj"],
    ["proj"],
    ["model.layers.2.mlp.down_proj"],
    r".*\.layers\.[02]\..*",
    ".*down_proj",
    "o_proj",
]
OTHERS: list[dict[str, Any]] = [
    {},
    {"exclude_modules": ["mlp.down_proj"]},
    {"exclude_modules": ".*qkv_proj"},
    {"modules_to_save": ["mlp"]},
    {"layers_to_transform": 1},
    {"layers_to_transform": [0, 2]},
    {"layers_to_transform": []},
    {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
    {"layers_to_transform": [2], "layers_pattern": ["blocks", "layers"]},
]


@pytest.mark.parametrize(
    ("targets", "others"),
    [
        (targets, others)
        for targets, others in itertools.product(TARGETS, OTHERS)
        # PEFT refuses layers beside a regular expression.
        if isinstance(targets, list) or "layers_to_transform" not in others
    ],
)
def test_peft_agrees_about_every_module(targets: Any, others: dict[str, Any]) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    config = LoraConfig(target_modules=targets, **others)
    theirs = []
    for name in MODULES:
        found = check_target_module_exists(config, name)
        if found and not isinstance(found, _ExcludedModule):
            theirs.append(name)
    assert adapted_modules({"target_modules": targets, **others}, MODULES) == theirs


def test_all_linear_leaves_the_head_out() -> None:
    names = [*MODULES, "lm_head"]
    assert adapted_modules({"target_modules": "all-linear"}, names, "lm_head") == MODULES


def test_no_targets_adapt_nothing() -> None:
    assert adapted_modules({}, MODULES) == []
