"""Every recipe that is shipped, and the schema that editors check recipes with."""

import argparse
import json
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from flows.commands import schema as schema_command
from tasks.errors import UserError
from tasks.recipe import read_recipe
from tasks.recipe_schema import FILE_NAME, recipe_schema, render

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted(RECIPES.rglob("*.yaml"))


@pytest.fixture(scope="module")
def validator():
    schema = json.loads((RECIPES / FILE_NAME).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def wrong_places(validator, data):
    """Dotted places of all complaints, those inside conditional branches included."""
    found = set()
    for error in validator.iter_errors(data):
        for cause in [error, *(error.context or [])]:
            found.add(".".join(str(step) for step in cause.absolute_path))
    return found


def plain(path):
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def test_the_three_recipes_are_there():
    names = {path.name for path in SHIPPED}
    assert {"quickstart.yaml", "phi-3-mini-lora.yaml", "phi-3-mini-qlora.yaml"} <= names


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_without_a_warning_and_fits_the_schema(path, validator):
    loaded = read_recipe(path)
    assert loaded.warnings == ()
    assert wrong_places(validator, plain(path)) == set()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_opens_with_its_command_and_its_schema(path):
    command, schema_line, *_ = path.read_text(encoding="utf-8").splitlines()
    assert command == f"# loraline run {path.relative_to(RECIPES.parent).as_posix()}"
    named = schema_line.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / named).resolve() == (RECIPES / FILE_NAME).resolve()


def test_no_shipped_recipe_pins_a_commit():
    for path in SHIPPED:
        assert len(read_recipe(path).recipe.base.revision) < 40
    assert list(RECIPES.rglob("*.lock")) == []


def test_the_quickstart_promotes_by_itself_and_the_others_ask():
    policies = {path.stem: read_recipe(path).recipe.promotion.policy for path in SHIPPED}
    assert policies.pop("quickstart") == "automatic"
    assert "automatic" not in policies.values()


@pytest.mark.parametrize("stem", ["phi-3-mini-lora", "phi-3-mini-qlora"])
def test_the_phi_3_recipes_name_the_fused_layers_or_all(stem):
    recipe = read_recipe(RECIPES / f"{stem}.yaml").recipe
    assert recipe.base.model == "microsoft/Phi-3-mini-4k-instruct"
    targets = recipe.training.resolved_peft_config()["target_modules"]
    assert targets in ("all-linear", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"])


def test_the_committed_schema_is_what_the_settings_give():
    assert (RECIPES / FILE_NAME).read_text(encoding="utf-8") == render(recipe_schema()), (
        "run `loraline schema --write`"
    )


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        ("sede", 3, ""),
        ("training.metod", "sft", "training"),
        ("training.peft_config.rr", 8, "training.peft_config"),
        ("training.peft_config.r", "8", "training.peft_config.r"),
        ("training.peft_config.bias", "some", "training.peft_config.bias"),
        ("training.peft_config.peft_type", "LORRA", "training.peft_config.peft_type"),
        ("training.training_config.learning_rat", 1e-4, "training.training_config"),
        ("training.training_config.learning_rate", -1, "training.training_config.learning_rate"),
        ("training.training_config.output_dir", "./x", "training.training_config.output_dir"),
        ("dataset.split.tset", 0.1, "dataset.split"),
        ("promotion.policy", "auto", "promotion.policy"),
    ],
)
def test_the_schema_refuses_a_slip_of_the_hand(validator, place, value, complaint):
    data = plain(RECIPES / "quickstart.yaml")
    *parents, name = place.split(".")
    section = data
    for parent in parents:
        section = section.setdefault(parent, {})
    section[name] = value
    assert complaint in wrong_places(validator, data)


def test_the_schema_knows_the_fields_of_each_peft_type(validator):
    data = plain(RECIPES / "quickstart.yaml")
    data["training"]["peft_config"] = {"peft_type": "LOHA", "alpha": 8}
    assert wrong_places(validator, data) == set()
    data["training"]["peft_config"] = {"peft_type": "LOHA", "lora_alpha": 8}
    assert "training.peft_config" in wrong_places(validator, data)


def test_the_schema_tolerates_what_reading_a_recipe_tolerates(validator):
    data = plain(RECIPES / "quickstart.yaml")
    data["base"] = "microsoft/Phi-3-mini-4k-instruct"
    data["training"]["training_config"] |= {
        "bf16": True,
        "output_dir": "./checkpoint_dir",
        "overwrite_output_dir": True,
        "seed": 0,
        "warmup_ratio": 0.2,
        "evaluation_strategy": "steps",
        "max_seq_length": 512,
        "gradient_checkpointing": True,
        "report_to": "wandb",
    }
    assert wrong_places(validator, data) == set()


def test_every_field_of_the_schema_says_what_it_does():
    """A hover in an editor must not be empty. Choices show themselves; some library fields have no text."""
    schema = recipe_schema()
    speaking = {"description", "$ref", "const", "enum"}
    silent = [
        f"{name}.{field}"
        for name, definition in schema["$defs"].items()
        if not name.startswith("peft_")
        for field, fragment in definition.get("properties", {}).items()
        if not speaking & set(fragment)
    ]
    assert silent == []


def options(*words):
    parser = argparse.ArgumentParser()
    schema_command.add_arguments(parser)
    return parser.parse_args(list(words))


def test_the_command_prints_the_schema(capsys):
    assert schema_command.run(options()) == 0
    assert json.loads(capsys.readouterr().out) == recipe_schema()


def test_the_command_writes_the_schema_to_a_file(tmp_path, capsys):
    target = tmp_path / "schema.json"
    assert schema_command.run(options("--write", str(target))) == 0
    assert json.loads(target.read_text(encoding="utf-8")) == recipe_schema()
    assert capsys.readouterr().out == ""


def test_the_command_says_why_it_cannot_write(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        schema_command.run(options("--write", str(tmp_path / "absent" / "schema.json")))
