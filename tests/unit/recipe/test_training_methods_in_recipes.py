"""What a recipe may say for each training method."""

import json

import jsonschema
import pytest
from pydantic import ValidationError

from tasks.errors import RecipeError
from tasks.methods import PREFERENCE_METHODS, ROWS
from tasks.recipe import read_recipe
from tasks.recipe_schema import recipe_schema
from tasks.training import fields, owned
from tasks.training.settings import TrainingSettings

HEAD = "base: ./base\ndataset:\n  sources:\n    - {type: jsonl, path: rows.jsonl}\n"


@pytest.mark.parametrize("method", ROWS)
def test_a_method_needs_no_field_beside_it(method):
    settings = TrainingSettings(method=method)
    known = fields.training_fields(method)
    assert set(settings.resolved_training_config()) <= set(known)
    assert settings.content()["method"] == method


def test_preferences_are_learned_with_smaller_steps_than_answers():
    rates = {
        m: TrainingSettings(method=m).resolved_training_config()["learning_rate"] for m in ROWS
    }
    assert max(rates[m] for m in PREFERENCE_METHODS) < rates["sft"] == rates["pretraining"]


@pytest.mark.parametrize(
    ("method", "config", "words"),
    [
        ("sft", {"beta": 0.1}, "SFT configuration has no such field"),
        ("dpo", {"bta": 0.1}, "Did you mean `beta`"),
        ("dpo", {"beta": "much"}, "must be a number"),
        ("dpo", {"packing": True}, "tokenization.packing"),
        ("dpo", {"max_length": 512}, "tokenization.max_length"),
        ("dpo", {"precompute_ref_log_probs": True}, "the adapter switched off"),
        ("orpo", {"max_completion_length": 9}, "answers are never cut"),
        ("kto", {"per_device_train_batch_size": 1}, "write 2 or more"),
        ("kto", {"ref_model_sync_steps": 3}, "the adapter switched off"),
    ],
)
def test_fields_of_other_methods_and_of_the_pipeline_are_refused_in_words(method, config, words):
    with pytest.raises(ValidationError, match=words):
        TrainingSettings(method=method, training_config=config)


@pytest.mark.parametrize("method", PREFERENCE_METHODS)
def test_owned_fields_of_preferences_are_kept_up_with_the_classes(method):
    everywhere = set().union(*(fields.training_fields(m) for m in PREFERENCE_METHODS))
    assert set(owned.PREFERENCE) <= everywhere
    with pytest.raises(ValidationError, match="one process"):
        TrainingSettings(method=method, processes=2)


@pytest.mark.parametrize(
    ("method", "tokenization", "words"),
    [
        ("dpo", "packing: true", "pairs are never packed"),
        ("orpo", "train_on: all", "compares answers"),
        ("kto", "long_rows: split_turns", "error, drop or truncate_prompt"),
        ("pretraining", "train_on: last_assistant", "every token of a text"),
    ],
)
def test_tokenization_must_fit_the_method(write_recipe, method, tokenization, words):
    text = f"tokenization:\n  {tokenization}\ntraining:\n  method: {{}}\n"
    read_recipe(write_recipe(text.format("sft")))
    with pytest.raises(RecipeError, match=words):
        read_recipe(write_recipe(text.format(method)))


def test_noise_that_follows_from_a_rows_length_is_refused_where_rows_are_packed(write_recipe):
    text = (
        "tokenization:\n  packing: {}\ntraining:\n  training_config:\n    neftune_noise_alpha: 5\n"
    )
    read_recipe(write_recipe(text.format("false")))
    with pytest.raises(RecipeError, match="packing makes one row of many: delete one of the two"):
        read_recipe(write_recipe(text.format("true")))


def test_a_gate_may_ask_for_preference_accuracy_where_answers_are_compared(write_recipe):
    text = (
        "training:\n  method: {}\nevaluation:\n  gate:\n"
        "    - {{metric: preference_accuracy, against: base, min_gain: 0.0}}\n"
    )
    for method in PREFERENCE_METHODS:
        read_recipe(write_recipe(text.format(method)))
    for method in ("sft", "pretraining"):
        with pytest.raises(
            RecipeError, match="asks for preference_accuracy: no adapter could pass"
        ):
            read_recipe(write_recipe(text.format(method)))


def test_an_editor_knows_the_fields_of_each_method():
    schema = json.loads(json.dumps(recipe_schema()))

    def valid(method, config):
        recipe = {
            "name": "a",
            "base": "./base",
            "dataset": {"sources": [{"type": "jsonl", "path": "a.jsonl"}]},
            "training": {"method": method, "training_config": config},
        }
        return not list(jsonschema.Draft202012Validator(schema).iter_errors(recipe))

    assert valid("dpo", {"beta": 0.1})
    assert valid("kto", {"desirable_weight": 1.5})
    assert valid("sft", {"learning_rate": 1e-4})
    assert not valid("sft", {"beta": 0.1})
    assert not valid("orpo", {"desirable_weight": 1.5})
