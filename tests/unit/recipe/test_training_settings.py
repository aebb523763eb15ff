"""The two dictionaries: the generated table of their fields, their checks, their defaults."""

import json

import pytest
from pydantic import ValidationError

from tasks.training import fields, old_names, owned
from tasks.training.settings import TrainingSettings


@pytest.fixture(scope="module")
def table():
    """Built from the installed classes: the expensive imports happen once."""
    from tasks.training.generate_fields import build_table

    return build_table()


def test_the_committed_table_is_what_the_installed_classes_give(table):
    from tasks.training.generate_fields import render

    assert fields.TABLE.read_text(encoding="utf-8") == render(table), (
        "run `python -m tasks.training.generate_fields`"
    )


def test_the_table_names_every_field_of_the_classes():
    import dataclasses

    from peft import LoraConfig
    from trl import DPOConfig, SFTConfig

    def names(cls):
        return {field.name for field in dataclasses.fields(cls) if field.init}

    assert set(fields.peft_fields("LORA")) == names(LoraConfig)
    assert set(fields.training_fields("sft")) == names(SFTConfig)
    assert set(fields.training_fields("dpo")) == names(DPOConfig)


def test_every_default_in_the_table_fits_its_own_fragment():
    groups = {name: fields.peft_fields(name) for name in fields.peft_types()}
    groups |= {method: fields.training_fields(method) for method in ("sft", "dpo", "kto", "orpo")}
    wrong = [
        (group, name, found)
        for group, known in groups.items()
        for name, fragment in known.items()
        if fragment.get("default") is not None
        and (found := fields.problem(fragment["default"], fragment))
    ]
    assert wrong == []


def test_owned_removed_and_moved_names_are_kept_up_with_the_classes():
    known = set(fields.training_fields("sft"))
    assert set(owned.TRAINING) <= known
    assert set(owned.PEFT) <= set(fields.peft_fields("LORA"))
    assert not set(old_names.REMOVED) & known
    assert set(old_names.RENAMED.values()) <= known


def test_who_wants_to_start_anew_is_told_what_does():
    with pytest.raises(ValidationError, match="with `--force` too; another `seed:` starts anew"):
        TrainingSettings(training_config={"resume_from_checkpoint": "checkpoint-10"})


def test_every_peft_type_builds_its_class_from_the_resolved_defaults():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, get_peft_config

    needs_more = {
        "ADALORA": {"total_step": 10},
        "IA3": {"target_modules": ["o_proj"], "feedforward_modules": []},
    }
    for name in fields.peft_types():
        settings = TrainingSettings(peft_config={"peft_type": name} | needs_more.get(name, {}))
        config = get_peft_config(settings.resolved_peft_config())
        assert type(config) is PEFT_TYPE_TO_CONFIG_MAPPING[name]
        assert config.task_type == "CAUSAL_LM"


@pytest.mark.parametrize(
    ("value", "fragment", "words"),
    [
        (3, {"type": "integer"}, None),
        (3.0, {"type": "integer"}, "must be an integer, not 3.0"),
        (True, {"type": ["integer", "number"]}, "must be an integer or a number, not true"),
        (1, {"type": "boolean"}, "must be true or false, not 1"),
        (None, {"type": ["string", "null"]}, None),
        ("", {"type": "array"}, "must be a list, not ''"),
        (False, {"enum": [0, "no"]}, "must be one of 0, no, not false"),
        ("a", {"enum": ["a"]}, None),
        ("pissa_niter_4", {"anyOf": [{"type": "string", "pattern": "^pissa_niter_[0-9]+$"}]}, None),
        (
            "pissa_niter_x",
            {"anyOf": [{"enum": ["gaussian"]}, {"type": "string", "pattern": "^p_[0-9]+$"}]},
            "must match ^p_[0-9]+$, not 'pissa_niter_x'",
        ),
        (
            [1, "a"],
            {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]},
            "item 2 must be an integer, not 'a'",
        ),
        (
            5,
            {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]},
            "must be a list of texts or a text, not 5",
        ),
        ({"a": "x"}, {"type": "object", "additionalProperties": {"type": "integer"}}, "`a` must"),
        (float("nan"), {"type": "number"}, "must be a finite number, not nan"),
        (0.5, {"type": "number", "exclusiveMaximum": 0.5}, "must be below 0.5, not 0.5"),
        ("anything", {}, None),
    ],
)
def test_a_value_is_judged_in_words(value, fragment, words):
    found = fields.problem(value, fragment)
    assert found is None if words is None else found is not None and words in found


def test_settings_made_in_code_are_checked_like_those_of_a_recipe():
    with pytest.raises(ValidationError) as error:
        TrainingSettings(peft_config={"rank": 3}, training_config={"output_dir": "x", "optim": "a"})
    assert [".".join(map(str, item["loc"])) for item in error.value.errors()] == [
        "peft_config.rank",
        "training_config.output_dir",
        "training_config.optim",
    ]


def test_the_defaults_are_those_that_the_documents_samples_lack():
    settings = TrainingSettings()
    assert settings.resolved_peft_config() == {
        "bias": "none",
        "lora_alpha": 64,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": 32,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }
    training = settings.resolved_training_config()
    assert training["learning_rate"] == 2e-4
    assert training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] == 16
    assert training["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}


@pytest.mark.parametrize(
    ("width", "method", "rate"),
    [
        (3072, "sft", 2e-4),
        (6144, "sft", 1e-4),
        (256, "sft", 2.4e-3),
        (32, "sft", 3.2e-3),
        (1536, "dpo", 2e-5),
        (None, "sft", 2e-4),
    ],
)
def test_the_default_learning_rate_follows_the_bases_width(tmp_path, width, method, rate):
    (tmp_path / "config.json").write_text(json.dumps({"n_embd": width} if width else {}))
    settings = TrainingSettings(method=method)
    assert settings.resolved_training_config(tmp_path)["learning_rate"] == pytest.approx(rate)


@pytest.mark.parametrize(
    "given", [{"peft_config": {"peft_type": "IA3"}}, {"training_config": {"learning_rate": 2e-4}}]
)
def test_a_learning_rate_that_is_given_and_that_of_other_methods_stay(tmp_path, given):
    (tmp_path / "config.json").write_text('{"hidden_size": 256}')
    settings = TrainingSettings(**given)
    assert settings.resolved_training_config(tmp_path)["learning_rate"] == 2e-4


def test_what_a_recipe_says_lies_over_the_defaults():
    settings = TrainingSettings(
        peft_config={"lora_dropout": 0.1, "target_modules": None},
        training_config={"learning_rate": 1e-3},
    )
    assert settings.resolved_peft_config()["lora_dropout"] == 0.1
    assert settings.resolved_peft_config()["target_modules"] is None
    assert settings.resolved_training_config()["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("peft", "alpha"),
    [({"r": 8}, 16), ({"r": 64, "use_rslora": True}, 64), ({"r": 8, "lora_alpha": 5}, 5)],
)
def test_alpha_follows_the_rank_unless_it_is_given(peft, alpha):
    assert TrainingSettings(peft_config=peft).resolved_peft_config()["lora_alpha"] == alpha


@pytest.mark.parametrize(("rows", "accumulation"), [(1, 16), (4, 4), (5, 3), (16, 1), (64, 1)])
def test_the_effective_batch_stays_when_only_the_batch_is_given(rows, accumulation):
    settings = TrainingSettings(training_config={"per_device_train_batch_size": rows})
    assert settings.resolved_training_config()["gradient_accumulation_steps"] == accumulation


def test_another_schedule_takes_none_of_the_default_schedules_arguments():
    settings = TrainingSettings(training_config={"lr_scheduler_type": "linear"})
    assert "lr_scheduler_kwargs" not in settings.resolved_training_config()


def test_guards_against_stalls_are_not_part_of_the_adapters_content():
    patient = TrainingSettings(timeout_minutes=600, stall_minutes=60)
    assert patient.content() == TrainingSettings().content()
    written_out = TrainingSettings(peft_config={"r": 32, "lora_alpha": 64})
    assert written_out.content() == TrainingSettings().content()


def test_the_recorded_learning_rate_is_the_one_that_trains(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "phi3", "hidden_size": 256}')
    recorded = TrainingSettings().content(tmp_path)["training_config"]["learning_rate"]
    assert recorded == TrainingSettings().resolved_training_config(tmp_path)["learning_rate"]
    assert recorded == pytest.approx(2.4e-3)
    written = TrainingSettings(training_config={"learning_rate": 1e-4})
    assert written.content(tmp_path)["training_config"]["learning_rate"] == 1e-4


def test_two_quantizations_of_one_base_are_refused():
    with pytest.raises(ValidationError, match="both quantize the base"):
        TrainingSettings(
            quantization="nf4",
            peft_config={"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
        )
