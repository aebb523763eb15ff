"""The gate's verdict: each kind of rule, what cannot be judged, ties, and adapters made on purpose."""

import json
from typing import Any

import numpy as np
import pytest

from tasks.evaluation.aggregates import Array
from tasks.evaluation.gate import judge
from tasks.evaluation.gate_evidence import Evidence, RowSet
from tasks.evaluation.gate_settings import GateRule

DIRECTION = {"rougeL": 1, "chrf": 1, "stop_rate": 1, "loss": -1, "mean_length": 0}
ROWS = 100
NOISE = np.random.default_rng(0).normal(size=(4, ROWS))
HARDNESS = 0.4 + 0.1 * NOISE[0]


def means(scores: Array, weights: Array | float = 1.0) -> Array:
    weight = np.broadcast_to(weights, scores.shape)
    return np.column_stack([scores * weight, weight]).astype(np.float64)


def chrf(scores: Array) -> Array:
    """Counts whose corpus chrF grows with the scores."""
    counts = []
    for score in scores:
        counts.append([count for n in range(1, 7) for count in (50 - n, 50 - n, 30 * score)])
    return np.array(counts)


def model(gain: float, *, noise: int = 1, spread: float = 0.05, stops: float = 1.0) -> Any:
    rougel = HARDNESS + gain + spread * NOISE[noise]
    return {
        "rougeL": means(rougel),
        "chrf": chrf(rougel),
        "stop_rate": means((np.arange(ROWS) < stops * ROWS).astype(float)),
        "loss": means(2.0 - rougel, np.arange(ROWS) % 7 + 1.0),
        "mean_length": means(10 + NOISE[3]),
    }


BASE = model(-0.2, noise=3)
CHAMPION = model(0.0)
BETTER = model(0.05, noise=2)
EQUAL = model(0.0, noise=2)
NOISY = model(0.03, noise=2, spread=0.15)
"""Better by chance: its mean is higher, and its rows swing far more than that."""
BAD = model(-0.15, noise=2)


def evidence(challenger: Any = BETTER, champion: Any = CHAMPION, **fields: Any) -> Evidence:
    statistics = {"base": BASE, "challenger": challenger}
    statistics |= {} if champion is None else {"champion": champion}
    slices = fields.pop("slices", {})
    return Evidence(RowSet(statistics, slices), direction=DIRECTION, **fields)


def rule(**fields: Any) -> GateRule:
    return GateRule(**fields)


def verdict(*rules: GateRule, of: Evidence | None = None, **options: Any) -> Any:
    return judge(rules, of or evidence(), **options)


def passes(asked: GateRule, of: Evidence | None = None) -> bool:
    return bool(verdict(asked, of=of)["passed"])


def why(asked: GateRule, of: Evidence | None = None) -> str:
    return str(verdict(asked, of=of)["rules"][0]["why"])


def test_without_rules_there_is_no_verdict() -> None:
    assert verdict() is None


@pytest.mark.parametrize("test", ["bootstrap", "permutation"])
@pytest.mark.parametrize("metric", ["rougeL", "chrf", "loss"])
def test_only_the_truly_better_adapter_replaces_the_champion(test: str, metric: str) -> None:
    asked = rule(metric=metric, against="champion", min_gain=0.0, test=test)
    assert passes(asked, evidence(BETTER))
    for other in (EQUAL, NOISY, BAD):
        assert not passes(asked, evidence(other))


def test_the_noisy_one_looks_better_and_the_verdict_says_why_that_is_not_enough() -> None:
    found = verdict(rule(metric="rougeL", min_gain=0.0), of=evidence(NOISY))["rules"][0]
    assert found["gain"] > 0
    assert found["low"] < 0 < found["high"]
    assert "does not lie above 0" in found["why"]
    assert "100 of 100 rows differ, so this may be chance" in found["why"]


def test_the_gain_and_its_interval_are_those_of_the_rows() -> None:
    found = verdict(rule(metric="rougeL", min_gain=0.0))["rules"][0]
    gains = 0.05 + 0.05 * (NOISE[2] - NOISE[1])
    assert found["gain"] == pytest.approx(gains.mean())
    half = 1.984 * gains.std(ddof=1) / np.sqrt(ROWS)
    assert found["low"] == pytest.approx(gains.mean() - half, abs=half / 8)
    assert found["high"] == pytest.approx(gains.mean() + half, abs=half / 8)
    assert found["value"] - found["reference"] == pytest.approx(found["gain"])


def test_a_gain_is_positive_where_less_is_better_and_weights_count() -> None:
    found = verdict(rule(metric="loss", min_gain=0.0))["rules"][0]
    weights = np.arange(ROWS) % 7 + 1.0
    expected = np.average(0.05 + 0.05 * (NOISE[2] - NOISE[1]), weights=weights)
    assert found["value"] < found["reference"]
    assert found["gain"] == pytest.approx(expected)
    assert found["passed"]
    assert not passes(rule(metric="loss", min_gain=0.0), evidence(BAD))


def test_the_margin_must_be_exceeded_beyond_chance() -> None:
    assert passes(rule(metric="rougeL", min_gain=0.03))
    assert not passes(rule(metric="rougeL", min_gain=0.05))


def test_a_higher_confidence_asks_for_more() -> None:
    slight = evidence(model(0.02, noise=2))
    assert passes(rule(metric="rougeL", min_gain=0.0), slight)
    assert not passes(rule(metric="rougeL", min_gain=0.0, confidence=0.999), slight)


def test_non_inferiority_lets_an_equal_adapter_pass_and_no_bad_one() -> None:
    for test in ("bootstrap", "permutation"):
        tolerant = rule(metric="rougeL", min_gain=-0.03, test=test)
        assert passes(tolerant, evidence(EQUAL))
        assert not passes(tolerant, evidence(model(-0.03, noise=2)))
        assert not passes(tolerant, evidence(BAD))


def test_bounds_hold_for_the_adapters_own_value() -> None:
    some_stop = evidence(model(0.1, stops=0.98))
    assert passes(rule(metric="stop_rate", min=0.95), some_stop)
    assert passes(rule(metric="stop_rate", min=0.98, max=0.98), some_stop)
    assert not passes(rule(metric="stop_rate", min=0.99), some_stop)
    assert not passes(rule(metric="stop_rate", max=0.97), some_stop)
    assert why(rule(metric="stop_rate", min=0.99), some_stop) == (
        "0.98 is below the least allowed, 0.99"
    )


def test_a_drop_is_judged_as_measured_and_with_a_confidence_beyond_chance() -> None:
    equal = evidence(EQUAL)
    drop = -verdict(rule(metric="rougeL", max_drop=0.5), of=equal)["rules"][0]["gain"]
    assert 0 < drop < 0.02
    assert passes(rule(metric="rougeL", max_drop=drop), equal)
    assert not passes(rule(metric="rougeL", max_drop=drop - 1e-6), equal)
    assert not passes(rule(metric="rougeL", max_drop=drop, confidence=0.95), equal)
    assert passes(rule(metric="rougeL", max_drop=0.03, confidence=0.95), equal)
    assert passes(rule(metric="rougeL", max_drop=0.0))


def test_one_failed_rule_fails_the_gate() -> None:
    found = verdict(rule(metric="stop_rate", min=0.95), rule(metric="loss", max=0.1))
    assert [entry["passed"] for entry in found["rules"]] == [True, False]
    assert not found["passed"]


def test_without_a_champion_its_rules_are_judged_against_the_base_and_say_so() -> None:
    first = evidence(champion=None)
    for asked in (
        rule(metric="rougeL", against="champion", min_gain=0.1),
        rule(metric="rougeL", max_drop=0.0),
    ):
        found = verdict(asked, of=first)
        assert found["passed"]
        assert found["rules"][0]["judged_against"] == "base"
        assert "no champion yet" in found["rules"][0]["why"]
    assert not passes(rule(metric="rougeL", min_gain=0.0), evidence(BASE, champion=None))


def test_equal_answers_keep_the_champion_whatever_the_rules_tolerate() -> None:
    # The loss may differ in its last digits; users see answers.
    same = evidence(BETTER, same_answers=["champion"])
    for asked in (rule(metric="stop_rate", min=0.0), rule(metric="rougeL", min_gain=-0.5)):
        found = verdict(asked, of=same)
        assert found["rules"][0]["passed"]
        assert not found["passed"]
        assert found["rules"][-1]["metric"] == "all"
        assert "all 100 answers equal the champion's" in found["rules"][-1]["why"]
    assert passes(rule(metric="stop_rate", min=0.0), evidence(same_answers=["base"]))


@pytest.mark.parametrize("test", ["bootstrap", "permutation"])
def test_the_champion_never_gains_on_itself(test: str) -> None:
    for metric in ("rougeL", "chrf", "loss"):
        found = verdict(rule(metric=metric, min_gain=0.0, test=test), of=evidence(CHAMPION))
        entry = found["rules"][0]
        assert not entry["passed"]
        assert (entry["gain"], entry["low"], entry["high"], entry["p"]) == (0.0, 0.0, 0.0, 1.0)
        assert entry["differing_rows"] == 0


def test_a_champion_that_cannot_be_scored_refuses_whatever_the_rules_ask() -> None:
    broken = evidence(champion=None, champion_problem="its adapter_model.safetensors is damaged.")
    for asked in (rule(metric="stop_rate", min=0.0), rule(metric="rougeL", min_gain=0.0)):
        found = verdict(asked, of=broken)
        assert not found["passed"]
        assert "its adapter_model.safetensors is damaged" in found["rules"][-1]["why"]
    against_base = verdict(rule(metric="rougeL", against="base", min_gain=0.0), of=broken)
    assert [entry["passed"] for entry in against_base["rules"]] == [True, False]


@pytest.mark.parametrize("who", ["challenger", "champion"])
@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_a_missing_or_endless_metric_refuses_and_names_whose_it_is(
    who: str, bad: float | None
) -> None:
    broken = dict(BETTER)
    if bad is None:
        del broken["rougeL"]
    else:
        broken["rougeL"] = BETTER["rougeL"].copy()
        broken["rougeL"][7, 0] = bad
    of = evidence(broken) if who == "challenger" else evidence(champion=broken)
    name = "adapter" if who == "challenger" else "champion"
    for asked in (rule(metric="rougeL", min_gain=-1.0), rule(metric="rougeL", max_drop=1.0)):
        found = verdict(asked, of=of)
        assert not found["passed"]
        assert name in found["rules"][0]["why"]
        assert ("missing" if bad is None else "is no number") in found["rules"][0]["why"]
        json.dumps(found, allow_nan=False)
    assert passes(rule(metric="rougeL", min=0.0), of) == (who == "champion")


def test_a_missing_preference_metric_says_where_it_would_be_measured() -> None:
    assert "pairs of answers" in why(rule(metric="preference_accuracy", min=0.5))


def test_a_metric_without_a_direction_cannot_be_gained_in() -> None:
    assert "no better direction" in why(rule(metric="mean_length", min_gain=0.0))


def test_too_few_rows_refuse_a_comparison_and_no_bound() -> None:
    few = {m: {k: v[:19] for k, v in s.items()} for m, s in evidence().test.statistics.items()}
    of = Evidence(RowSet(few), direction=DIRECTION)
    assert "19 rows are too few" in why(rule(metric="rougeL", min_gain=0.0), of)
    assert passes(rule(metric="rougeL", min_gain=0.0, min_rows=19), of)
    assert passes(rule(metric="stop_rate", min=0.9), of)
    assert not passes(rule(metric="stop_rate", min=0.9, min_rows=20), of)
    assert not passes(rule(metric="rougeL", min_gain=0.0, min_rows=101))


def test_rows_that_a_metric_says_nothing_about_are_no_rows() -> None:
    some = np.where(np.arange(ROWS) < 15, 1.0, 0.0)
    known = {
        m: {"rougeL": s["rougeL"] * some[:, None]} for m, s in evidence().test.statistics.items()
    }
    of = Evidence(RowSet(known), direction=DIRECTION)
    assert "15 rows are too few" in why(rule(metric="rougeL", min_gain=0.0), of)


LABELS = ["web"] * 50 + ["chat"] * 40 + ["rare"] * 10


def sliced(challenger: Any = BETTER) -> Evidence:
    halves = ["short" if n % 2 else "long" for n in range(ROWS)]
    return evidence(challenger, slices={"source": LABELS, "length": halves})


def worse_in_chat() -> Any:
    here = np.array([label == "chat" for label in LABELS])
    return {**BETTER, "rougeL": means(BETTER["rougeL"][:, 0] - 0.12 * here)}


def test_every_slice_must_hold_and_the_worst_is_named() -> None:
    asked = rule(metric="rougeL", slice="*", max_drop=0.02)
    assert passes(asked, sliced())
    found = verdict(asked, of=sliced(worse_in_chat()))["rules"][0]
    assert not found["passed"]
    assert {one["slice"]: one["passed"] for one in found["slices"]} == {
        "source=chat": False,
        "source=web": True,
        "length=long": True,
        "length=short": True,
    }
    assert found["worst_slice"] == "source=chat"
    assert found["why"].startswith(
        "1 of 4 slices fail (source=chat); the worst, source=chat: decline"
    )
    here = np.array([label == "chat" for label in LABELS])
    gains = worse_in_chat()["rougeL"][here, 0] - CHAMPION["rougeL"][here, 0]
    assert found["gain"] == pytest.approx(gains.mean())
    assert found["rows"] == 40


def test_slices_with_too_few_rows_are_listed_as_not_judged() -> None:
    found = verdict(rule(metric="rougeL", slice="source", max_drop=0.02), of=sliced())["rules"][0]
    assert found["not_judged"] == {"source=rare": 10}
    assert [one["slice"] for one in found["slices"]] == ["source=chat", "source=web"]
    assert "not judged, with fewer than 30 rows: 1" in found["why"]
    all_of_them = rule(metric="rougeL", slice="source", max_drop=0.02, min_rows=10)
    assert verdict(all_of_them, of=sliced())["rules"][0]["not_judged"] == {}


def test_a_rule_that_can_judge_no_slice_refuses() -> None:
    asked = rule(metric="rougeL", slice="*", max_drop=0.5)
    assert "no slice is *" in why(asked)
    assert "sliced by: length, source" in why(
        rule(metric="rougeL", slice="topic", max_drop=0.5), sliced()
    )
    too_many = rule(metric="rougeL", slice="source", max_drop=0.5, min_rows=60)
    assert "the largest has 50" in why(too_many, sliced())
    unmeasured = rule(metric="rouge1", slice="source", min=0.0, min_rows=5)
    assert "missing" in why(unmeasured, sliced())


def test_one_slice_can_be_named_and_bounds_hold_in_slices_too() -> None:
    chat = rule(metric="rougeL", slice="source=chat", min_gain=0.0)
    assert passes(chat, sliced())
    assert not passes(chat, sliced(worse_in_chat()))
    assert passes(rule(metric="rougeL", slice="source=web", min_gain=0.0), sliced(worse_in_chat()))
    stops = evidence(model(0.1, stops=0.9), slices={"source": LABELS})
    found = verdict(rule(metric="stop_rate", slice="*", min=0.5, min_rows=5), of=stops)["rules"][0]
    assert not found["passed"]
    assert found["worst_slice"] == "source=rare"


def suites(challenger: Any, **fields: Any) -> Evidence:
    rows = RowSet({"base": BASE, "champion": CHAMPION, "challenger": challenger}, **fields)
    return evidence(suites={"retention": rows})


def test_a_suite_is_judged_on_its_own_rows_by_its_main_metric() -> None:
    forgotten = model(-0.05, noise=1)
    asked = rule(suite="retention", max_drop=0.01)
    assert passes(asked, suites(CHAMPION))
    found = verdict(asked, of=suites(forgotten))["rules"][0]
    assert not found["passed"]
    assert found["metric"] == "rougeL"
    assert found["rule"] == "retention: rougeL: drop against the champion at most 0.01"
    assert found["gain"] == pytest.approx(-0.05)
    assert verdict(asked, of=suites(forgotten, main_metric="loss"))["rules"][0]["metric"] == "loss"
    assert passes(rule(suite="retention", against="base", max_drop=0.01), suites(forgotten))
    assert "the suite retention was not measured" in why(asked)


def test_holm_corrects_the_claims_of_gains_alone() -> None:
    rules = [
        rule(metric="rougeL", min_gain=0.0),
        rule(metric="chrf", min_gain=0.0),
        rule(metric="loss", min_gain=-0.5),
        rule(metric="stop_rate", min=0.5),
    ]
    found = verdict(*rules, of=evidence(model(0.012, noise=2)))["rules"]
    corrected = [entry.get("p_corrected") for entry in found]
    plain = [entry.get("p") for entry in found]
    assert corrected[2:] == [None, None]
    assert plain[3] is None
    first, second = sorted(zip(plain[:2], corrected[:2], strict=True))
    assert first[1] == pytest.approx(2 * first[0])
    assert second[1] == pytest.approx(max(second[0], first[1]))
    without = verdict(*rules, of=evidence(model(0.012, noise=2)), correction="none")["rules"]
    assert [entry.get("p_corrected") for entry in without[:2]] == plain[:2]


def test_a_correction_can_only_refuse_more() -> None:
    rules = [rule(metric=name, min_gain=0.0) for name in ("rougeL", "chrf", "loss")]
    for gain in np.linspace(0.0, 0.03, 13):
        of = evidence(model(float(gain), noise=2))
        none, holm, bonferroni = (
            verdict(*rules, of=of, correction=name)["passed"]
            for name in ("none", "holm", "bonferroni")
        )
        assert none >= holm >= bonferroni


def test_where_only_the_correction_refuses_the_reason_says_so() -> None:
    rules = [rule(metric="rougeL", min_gain=0.0), rule(metric="stop_rate", min_gain=0.0)]
    for gain in np.linspace(0.005, 0.03, 26):
        found = verdict(*rules, of=evidence(model(float(gain), noise=2)))["rules"][0]
        if found["p"] <= 0.025 < found["p_corrected"]:
            assert not found["passed"]
            assert "lies above 0" in found["why"]
            assert "corrected for 2 claims; at most 0.025 passes" in found["why"]
            return
    pytest.fail("no gain lay between the two")


def test_a_margin_on_a_metric_that_is_no_mean_cannot_be_permuted_and_refuses() -> None:
    asked = GateRule.model_construct(metric="chrf", min_gain=-0.1, test="permutation")
    found = verdict(asked)["rules"][0]
    assert not found["passed"]
    assert "no mean of rows" in found["why"]


def test_the_verdict_is_the_same_every_time_and_plain_json() -> None:
    rules = [
        rule(metric="rougeL", min_gain=0.0),
        rule(metric="loss", min_gain=0.0, test="permutation"),
        rule(metric="rougeL", slice="*", max_drop=0.02),
        rule(metric="stop_rate", min=0.95),
    ]
    first, second = verdict(*rules, of=sliced()), verdict(*rules, of=sliced())
    assert first == second
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    entry = first["rules"][0]
    assert entry["rule"] == "rougeL: gain over the champion above 0"
    assert {k: entry[k] for k in ("metric", "against", "min_gain", "confidence", "test")} == {
        "metric": "rougeL",
        "against": "champion",
        "min_gain": 0.0,
        "confidence": 0.95,
        "test": "bootstrap",
    }
    assert first["correction"] == "holm"
