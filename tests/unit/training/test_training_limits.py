"""What a recipe may say of time and of patterns: nothing that a library stumbles over later."""

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.training.settings import TrainingSettings


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e12, 0])
@pytest.mark.parametrize(
    "field", ["stall_minutes", "timeout_minutes", "budget.wall_minutes", "budget.gpu_hours"]
)
def test_a_time_without_an_end_is_refused_at_its_field(field: str, value: float) -> None:
    section, _, inner = field.partition(".")
    with pytest.raises(ValidationError) as refused:
        TrainingSettings.model_validate({section: {inner: value} if inner else value})
    assert [".".join(map(str, e["loc"])) for e in refused.value.errors()] == [field]


@pytest.mark.parametrize("field", ["stall_minutes", "timeout_minutes"])
def test_a_week_is_no_mistake(field: str) -> None:
    assert TrainingSettings.model_validate({field: 10_080})


@pytest.mark.parametrize(
    "peft",
    [
        {"rank_pattern": {"(": 4}},
        {"alpha_pattern": {"o_proj": 2, "*.qkv": 4}},
        {"layers_to_transform": [0], "layers_pattern": ["layers)"]},
    ],
)
def test_a_pattern_that_is_none_is_refused_at_its_field(peft: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="no regular expression") as no:
        TrainingSettings(peft_config=peft)
    [error] = no.value.errors()
    assert error["loc"] == ("peft_config", list(peft)[-1])


def test_names_that_only_look_like_patterns_are_left_alone() -> None:
    assert TrainingSettings(peft_config={"target_modules": ["qkv_proj", "a("]})


@pytest.mark.parametrize("field", ["ignore_data_skip", "auto_find_batch_size"])
def test_what_would_read_other_rows_after_a_restart_is_not_set_in_a_recipe(field: str) -> None:
    with pytest.raises(ValidationError, match="is not set here"):
        TrainingSettings(training_config={field: True})
