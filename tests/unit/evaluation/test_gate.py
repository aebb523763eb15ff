"""The gate's verdict."""

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.evaluation.gate import judge
from tasks.evaluation.settings import METRICS, EvaluationSettings, GateRule

BASE = {"rougeL": 0.2, "loss": 3.0, "stop_rate": 0.1}
CHAMPION = {"rougeL": 0.3, "loss": 2.0, "stop_rate": 0.99}
BETTER = {"rougeL": 0.35, "loss": 1.9, "stop_rate": 0.98}
SPANS = {
    "base": {
        "rougeL": {"0.95": [0.12, 0.18], "0.99": [0.11, 0.19]},
        "loss": {"0.95": [-1.3, -0.9]},
    },
    "champion": {
        "rougeL": {"0.95": [0.01, 0.09], "0.99": [-0.01, 0.11]},
        "loss": {"0.95": [-0.15, -0.05]},
    },
}


def rule(**fields: Any) -> GateRule:
    return GateRule(**fields)


def verdict(*rules: GateRule, champion: dict[str, float] | None = CHAMPION, **models: Any) -> Any:
    metrics = {"base": BASE, "champion": champion, "challenger": BETTER, **models}
    return judge(rules, metrics, SPANS)


def test_without_rules_there_is_no_verdict() -> None:
    assert verdict() is None


def test_a_gain_whose_interval_lies_above_the_bar_passes() -> None:
    found = verdict(rule(metric="rougeL", against="champion", min_gain=0.0))
    assert found["passed"]
    assert found["rules"][0]["gain"] == pytest.approx(0.05)
    assert found["rules"][0]["judged_against"] == "champion"


def test_a_gain_with_an_interval_around_the_bar_fails() -> None:
    assert not verdict(rule(metric="rougeL", against="champion", min_gain=0.02))["passed"]


def test_a_higher_confidence_asks_for_more() -> None:
    asked = rule(metric="rougeL", against="champion", min_gain=0.0, confidence=0.99)
    assert not verdict(asked)["passed"]


def test_an_interval_that_starts_at_the_bar_fails() -> None:
    assert not verdict(rule(metric="rougeL", against="champion", min_gain=0.01))["passed"]


def test_lower_is_better_for_loss() -> None:
    found = verdict(rule(metric="loss", against="champion", min_gain=0.04))
    assert found["passed"]
    entry = found["rules"][0]
    assert (entry["gain"], entry["low"], entry["high"]) == pytest.approx((0.1, 0.05, 0.15))
    assert not verdict(rule(metric="loss", against="champion", min_gain=0.06))["passed"]


def test_without_a_champion_its_rules_are_judged_against_the_base_and_say_so() -> None:
    found = verdict(rule(metric="rougeL", against="champion", min_gain=0.1), champion=None)
    assert found["passed"]
    assert found["rules"][0]["judged_against"] == "base"
    assert "no champion yet" in found["rules"][0]["why"]


def test_bounds_hold_for_the_challengers_own_value() -> None:
    assert verdict(rule(metric="stop_rate", min=0.95))["passed"]
    assert not verdict(rule(metric="stop_rate", min=0.99))["passed"]
    assert verdict(rule(metric="loss", max=2.0))["passed"]
    assert not verdict(rule(metric="loss", max=1.0))["passed"]
    assert verdict(rule(metric="stop_rate", min=0.98, max=0.98))["passed"]


def test_one_failed_rule_fails_the_gate() -> None:
    found = verdict(rule(metric="stop_rate", min=0.95), rule(metric="loss", max=1.0))
    assert [entry["passed"] for entry in found["rules"]] == [True, False]
    assert not found["passed"]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_missing_or_infinite_metric_fails(value: float | None) -> None:
    broken = {**BETTER, "rougeL": value}
    if value is None:
        del broken["rougeL"]
    for asked in (
        rule(metric="rougeL", min=0.0),
        rule(metric="rougeL", against="base", min_gain=-1.0),
    ):
        found = verdict(asked, challenger=broken)
        assert not found["passed"]
        assert "missing or no number" in found["rules"][0]["why"]


def test_a_missing_interval_fails() -> None:
    found = verdict(rule(metric="stop_rate", against="base", min_gain=0.0))
    assert not found["passed"]
    assert "interval is missing" in found["rules"][0]["why"]


def test_a_tie_keeps_the_champion_whatever_the_rules_tolerate() -> None:
    found = verdict(rule(metric="stop_rate", min=0.5), challenger=dict(CHAMPION))
    assert not found["passed"]
    assert "a tie keeps the champion" in found["rules"][-1]["why"]
    tolerant = rule(metric="rougeL", against="champion", min_gain=-0.5)
    assert not verdict(tolerant, challenger=dict(CHAMPION))["passed"]


def test_the_verdict_repeats_the_rule_and_gives_the_numbers() -> None:
    entry = verdict(rule(metric="rougeL", against="base", min_gain=0.01))["rules"][0]
    assert entry["metric"] == "rougeL"
    assert entry["against"] == "base"
    assert entry["min_gain"] == 0.01
    assert entry["confidence"] == 0.95
    assert (entry["value"], entry["reference"]) == (0.35, 0.2)


@pytest.mark.parametrize(
    "fields",
    [
        {"metric": "rougeL"},
        {"metric": "rougeL", "against": "base"},
        {"metric": "rougeL", "min_gain": 0.0},
        {"metric": "rougeL", "against": "base", "min_gain": 0.0, "min": 0.1},
        {"metric": "rougeL", "min": 0.5, "max": 0.1},
        {"metric": "rougeL", "min": float("nan")},
        {"metric": "mean_length", "against": "base", "min_gain": 0.0},
        {"metric": "accuracy", "min": 0.1},
    ],
)
def test_a_rule_that_means_nothing_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GateRule(**fields)


def test_every_metric_can_be_bounded() -> None:
    for metric in METRICS:
        EvaluationSettings.model_validate({"gate": [{"metric": metric, "min": 0.0}]})
