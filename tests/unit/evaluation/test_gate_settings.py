"""Mistakes in gate rules, told when the recipe is read, each at its line."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.errors import RecipeError
from tasks.evaluation.aggregates import quotient, value_of
from tasks.evaluation.gate_settings import NOT_MEANS, GateRule
from tasks.evaluation.settings import METRICS, NO_DIRECTION, EvaluationSettings
from tasks.recipe import load_recipe

HEAD = "name: test\nbase: ./base\ndataset:\n  sources:\n    - {type: jsonl, path: rows.jsonl}\n"


def gate(tmp_path: Path, *rules: str, before: str = "") -> list[str]:
    """The mistakes of a recipe with these rules; the first rule stands on line 8 (more with `before`)."""
    lines = "".join(f"    - {rule}\n" for rule in rules)
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{HEAD}evaluation:\n{before}  gate:\n{lines}", encoding="utf-8")
    try:
        load_recipe(path)
    except RecipeError as error:
        return [line.removeprefix(f"{tmp_path}/") for line in str(error).splitlines()]
    return []


def test_the_rules_of_the_documentation_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "general.jsonl").touch()
    assert not gate(
        tmp_path,
        "{metric: rougeL, against: champion, min_gain: 0.0, confidence: 0.95}",
        "{metric: rougeL, against: champion, min_gain: -0.01, test: permutation}",
        "{metric: stop_rate, min: 0.95}",
        '{metric: rougeL, slice: "*", max_drop: 0.02}',
        "{metric: rougeL, slice: source=web, max_drop: 0.02, min_rows: 50}",
        "{suite: retention, max_drop: 0.01}",
        "{metric: custom/politeness, min: 3}",
        "{metric: loss, max: 4}",
        before="  slices: [source]\n  retention: general.jsonl\n  metrics_folder: mine\n",
    )


def test_left_out_fields_mean_what_is_careful() -> None:
    gained = GateRule(metric="rougeL", min_gain=0.0)
    assert (gained.opponent, gained.level, gained.least_rows) == ("champion", 0.95, 20)
    dropped = GateRule(metric="rougeL", slice="*", max_drop=0.02)
    assert (dropped.opponent, dropped.level, dropped.least_rows) == ("champion", None, 30)
    assert GateRule(metric="loss", max=3.0).least_rows == 1
    assert EvaluationSettings().gate_correction == "holm"


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (
            "{metric: rougel, min: 0.1}",
            f"8: evaluation.gate.0.metric: must be one of {', '.join(METRICS)}, not 'rougel'. "
            "Did you mean `rougeL`?",
        ),
        (
            "{metric: stop_rate, min: 95}",
            "8: evaluation.gate.0.min: `stop_rate` lies between 0 and 1, and this is 95. Did you mean 0.95?",
        ),
        (
            "{metric: mean_length, min_gain: 0}",
            "8: evaluation.gate.0.metric: `mean_length` has no better direction, so nothing can be gained or "
            "dropped in it; bound it with `min` and/or `max`.",
        ),
        (
            "{metric: rougeL}",
            "8: evaluation.gate.0: a gate rule claims something: `min_gain` or `max_drop` (a comparison), or "
            "`min` and/or `max` (a bound).",
        ),
        (
            "{metric: rougeL, against: base}",
            "8: evaluation.gate.0: a gate rule claims something: `min_gain` or `max_drop` (a comparison), or "
            "`min` and/or `max` (a bound).",
        ),
        (
            "{metric: rougeL, min_gain: 0, max_drop: 0.1}",
            "8: evaluation.gate.0: `max_drop` (0.1) and `min_gain` (0) both bound the same difference: keep "
            "one, or write two rules.",
        ),
        (
            "{metric: rougeL, min_gain: 0, min: 0.1}",
            "8: evaluation.gate.0: `min` and `max` bound the adapter's own value, `min_gain` and `max_drop` "
            "its difference to another model: write two rules.",
        ),
        (
            "{metric: rougeL, min: 0.5, max: 0.1}",
            "8: evaluation.gate.0: `min` (0.5) is above `max` (0.1).",
        ),
        (
            "{metric: rougeL, min: 0.5, confidence: 0.9}",
            "8: evaluation.gate.0: `confidence` belongs to a comparison, and `min` and `max` bound the "
            "adapter's own value: delete `confidence`, or write `min_gain` or `max_drop`.",
        ),
        (
            "{metric: bleu, min_gain: -0.1, test: permutation}",
            "8: evaluation.gate.0: a permutation test lays the margin (-0.1) on every row, and `bleu` is no "
            "mean of rows: write `test: bootstrap`, or `min_gain: 0`.",
        ),
        (
            "{metric: rougeL, max_drop: 0.1, test: permutation}",
            "8: evaluation.gate.0: `test` says how chance is ruled out, and `max_drop` alone is judged as "
            "measured: add `confidence`, or delete `test`.",
        ),
        (
            "{max_drop: 0.1}",
            "8: evaluation.gate.0: `metric` is missing; only a rule on a `suite` may leave it out.",
        ),
        (
            "{suite: retention, max_drop: 0.1}",
            "8: evaluation.gate.0.suite: the recipe measures no suite `retention`. `evaluation.retention` "
            "would measure `retention`.",
        ),
        (
            "{suite: retention, slice: source, metric: rougeL, max_drop: 0.1}",
            "8: evaluation.gate.0: `slice` parts the test rows, and `suite` names other rows: keep one of "
            "them.",
        ),
        (
            '{metric: rougeL, slice: "*", max_drop: 0.1}',
            "8: evaluation.gate.0.slice: the recipe makes no slices, so none can be judged (`*`): name their "
            "columns in `evaluation.slices`.",
        ),
        (
            "{metric: rougeL, min_gain: 0, confidense: 0.9}",
            "8: evaluation.gate.0.confidense: there is no such field. Did you mean `confidence`?",
        ),
        (
            "{metric: rougeL, max_drop: -0.1}",
            "8: evaluation.gate.0.max_drop: must be at least 0.0, not -0.1.",
        ),
        (
            "{metric: rougeL, min_gain: 0, confidence: 95}",
            "8: evaluation.gate.0.confidence: must be at most 0.999, not 95.",
        ),
    ],
)
def test_each_mistake_of_a_rule_has_its_line_and_a_way_out(
    tmp_path: Path, rule: str, line: str
) -> None:
    assert gate(tmp_path, rule) == [f"recipe.yaml:{line}"]


def test_a_slice_that_the_recipe_does_not_make_is_compared_with_those_it_makes(
    tmp_path: Path,
) -> None:
    rules = "{metric: rougeL, slice: sorce=web, max_drop: 0.1}"
    assert gate(tmp_path, rules, before="  slices: [source, length]\n") == [
        "recipe.yaml:9: evaluation.gate.0.slice: the recipe makes no slices by `sorce`. "
        "Did you mean `source`?"
    ]


def test_rules_that_contradict_or_repeat_each_other_are_refused(tmp_path: Path) -> None:
    found = gate(
        tmp_path,
        "{metric: stop_rate, min: 0.9}",
        "{metric: stop_rate, max: 0.8}",
        "{metric: rougeL, min_gain: 0}",
        "{metric: rougeL, min_gain: 0.0}",
    )
    assert found == [
        "recipe.yaml:9: evaluation.gate.1: together with gate.0 it asks for at least 0.9 and at most 0.8: "
        "no adapter could pass.",
        "recipe.yaml:11: evaluation.gate.3: says what gate.2 says: delete one.",
    ]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    found = gate(tmp_path, "{metric: rougel, min: 0.1}", "{metric: chrf, min: 40}")
    assert [line.partition(": ")[0] for line in found] == ["recipe.yaml:8", "recipe.yaml:9"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_endless_numbers_are_refused(value: float) -> None:
    for field in ("min", "min_gain", "max_drop"):
        fields: dict[str, Any] = {"metric": "loss", field: value}
        with pytest.raises(ValidationError):
            GateRule(**fields)


def test_every_metric_that_is_measured_can_be_bounded_and_those_with_a_direction_compared() -> None:
    everything = {
        "metrics": ["accuracy", "macro_f1", "json_validity"],
        "json_schema": "schema.json",
        "embedding_model": "model",
        "judge": {"url": "http://127.0.0.1:1/v1", "model": "judge"},
    }
    for metric in METRICS:
        EvaluationSettings.model_validate({**everything, "gate": [{"metric": metric, "min": 0.0}]})
        asked = {**everything, "gate": [{"metric": metric, "min_gain": 0.0}]}
        if metric in NO_DIRECTION:
            with pytest.raises(ValidationError, match="no better direction"):
                EvaluationSettings.model_validate(asked)
        else:
            EvaluationSettings.model_validate(asked)


def test_the_metrics_that_are_no_means_are_those_with_a_formula_of_their_own() -> None:
    assert {metric for metric in METRICS if value_of(metric) is not quotient} == NOT_MEANS
