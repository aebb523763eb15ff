"""Whether `peft_config` and `target_slices` name modules, layers and blocks that the model's files have."""

import re
from collections.abc import Iterator
from typing import Any

from tasks.model_files import ModelFiles
from tasks.training import fields
from tasks.training.defaults import OTHER_TARGETS, resolve_peft
from tasks.training.field_coverage import unmatched_entries
from tasks.training.fused import slices_problem
from tasks.training.matching import adapted_modules, chosen_layers, layer_of
from tasks.training.targets import own_names, target_problem, unmatched


def wrong_modules(given: Any, model: ModelFiles, name: str) -> Iterator[tuple[str, str]]:
    """(field of `peft_config`, what is wrong and the way out), where the files are proof.

    `given` is the recipe's `peft_config`, valid or not; `name` is what a person calls the model.
    """
    if not model.shapes or model.is_composite or model.model_type in fields.renamed_at_loading():
        # The worker, which has the real model, knows; the files do not tell.
        return
    config = _readable(given)
    if config is None:
        return
    linear, head = model.linear_modules()
    names = _module_names(config, model)
    try:
        if problem := target_problem(config.get("target_modules"), names, name, head):
            yield "target_modules", " ".join(problem.split("\n"))
            return
        if (given_layers := _layers_field(config)) and isinstance(config["target_modules"], str):
            names_here = ", ".join(own_names(linear, head))
            yield (
                given_layers,
                "PEFT chooses layers only where `target_modules` is a list of names, and it is "
                f"the string {config['target_modules']!r}. Write `target_modules: [{names_here}]` or "
                "some of them.",
            )
            return
        named = adapted_modules({"target_modules": config.get("target_modules")}, names, head)
        if absent := _absent_layers(config, named):
            yield absent
        elif named and not adapted_modules(config, names, head):
            field = "exclude_modules" if config.get("exclude_modules") else "modules_to_save"
            yield (
                field,
                "takes out every module that `target_modules` names: nothing would be trained. "
                "Name fewer.",
            )
        else:
            yield from unmatched_entries(config, named, adapted_modules(config, names, head))
    except re.error as error:
        yield (
            _no_expression(config),
            f"is no regular expression ({error}). Correct it, or write plain names.",
        )


def wrong_slices(
    given: Any, peft_config: Any, model: ModelFiles, name: str
) -> Iterator[tuple[str, str]]:
    """(module, what is wrong and the way out) for every entry of `target_slices` that the model lacks.

    `given` is the recipe's `target_slices`, valid or not, and `peft_config` what stands beside it.
    """
    renamed = model.model_type in fields.renamed_at_loading()
    if not isinstance(given, dict) or not model.config or model.is_composite or renamed:
        return
    adapted = _adapted(peft_config, model)
    for module, blocks in given.items():
        if not (isinstance(blocks, list) and all(isinstance(block, str) for block in blocks)):
            # Told as the mistake in the recipe that it is.
            continue
        try:
            problem = slices_problem({str(module): blocks}, model.config, adapted, name)
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            # A config without sizes; the worker, which has the real model, knows.
            return
        if problem:
            yield str(module), problem


def _module_names(config: dict[str, Any], model: ModelFiles) -> list[str]:
    """Modules that `target_modules` may name, as the model calls them once it is loaded."""
    linear, head = model.linear_modules()
    # Some files hold the inner model, whose names lack the outer one's prefix.
    inner = [module for module in linear if module != head]
    names = [*linear, *(f"{outer}.{n}" for outer in ("model", "transformer") for n in inner)]
    asked = config.get("target_modules")
    if isinstance(asked, list):
        # Embeddings are no linear modules, and may be named all the same.
        stored = [tensor.rpartition(".")[0] for tensor in model.shapes]
        tables = [module for module in stored if module not in linear and "norm" not in module]
        names += [module for module in tables if len(unmatched(asked, [module])) < len(asked)]
    return names


def _adapted(peft_config: Any, model: ModelFiles) -> list[str] | None:
    """Modules that get an adapter; None where that is not known from the files."""
    config = _readable(peft_config)
    if config is None or not model.shapes:
        return None
    try:
        return adapted_modules(config, _module_names(config, model), model.linear_modules()[1])
    except re.error:
        return None


def _readable(given: Any) -> dict[str, Any] | None:
    """The fields over their defaults, without those of a wrong kind; None where targets mean other things."""
    if not isinstance(given, dict):
        return None
    peft_type = given.get("peft_type", "LORA")
    if peft_type not in fields.peft_types() or peft_type in OTHER_TARGETS:
        return None
    known = fields.peft_fields(peft_type)
    if "target_modules" not in known:
        return None
    if "target_modules" in given and fields.problem(
        given["target_modules"], known["target_modules"]
    ):
        return None
    sound = {
        name: value
        for name, value in given.items()
        if name in known and fields.problem(value, known[name]) is None
    }
    return resolve_peft(sound)


def _layers_field(config: dict[str, Any]) -> str | None:
    fields_of_layers = ("layers_to_transform", "layers_pattern")
    return next((name for name in fields_of_layers if config.get(name) is not None), None)


def _absent_layers(config: dict[str, Any], modules: list[str]) -> tuple[str, str] | None:
    chosen = chosen_layers(config)
    layers = {layer for name in modules if (layer := layer_of(config, name)) is not None}
    if not chosen or not modules:
        return None
    if not layers:
        field = "layers_pattern" if config.get("layers_pattern") else "layers_to_transform"
        return field, (
            f"no number of a layer is found in the modules' names, such as {modules[0]}. "
            "Name the part before the number, or leave the choice of layers out."
        )
    absent = [layer for layer in chosen if layer not in layers]
    if not absent:
        return None
    return "layers_to_transform", (
        f"the model has no layer {', '.join(map(str, absent))}; its layers with these modules are "
        f"{min(layers)} to {max(layers)}. Correct it, or leave it out for all layers."
    )


def _no_expression(config: dict[str, Any]) -> str:
    """The field that holds what `re` refuses."""
    for field in ("exclude_modules", "modules_to_save", "layers_pattern"):
        value = config.get(field) or ()
        for pattern in [value] if isinstance(value, str) else value:
            try:
                re.compile(pattern)
            except re.error:
                return field
    return "target_modules"
