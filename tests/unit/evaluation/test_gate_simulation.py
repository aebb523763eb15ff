"""How often the gate promotes: adapters that are as good as the champion, and adapters that are better.

Models are simulated as nightly retrainings are: most answers are the champion's own, the others score
higher or lower, on a skewed scale between 0 and 1 or as right and wrong.
"""

import math
from typing import Any

import numpy as np
import pytest

from tasks.evaluation.aggregates import Array
from tasks.evaluation.gate import judge
from tasks.evaluation.gate_evidence import Evidence, RowSet
from tasks.evaluation.gate_settings import GateRule
from tasks.evaluation.paired import Correction

PAIRS = 200
ALPHA = 0.025
"""Half of what a confidence of 0.95 leaves: only gains promote."""
MOST = 11
"""With 200 pairs and a true rate of ALPHA, more false promotions than this happen once in 100 times."""
METRICS = ("rougeL", "rouge1", "exact_match")
DIRECTION = dict.fromkeys(METRICS, 1)


def simulated(generator: np.random.Generator, *, rows: int, changed: float, gain: float) -> RowSet:
    """A champion and a challenger; `changed` is the share of rows they answer differently."""
    hardness = generator.beta(1.2, 3.0, size=rows)
    swings = generator.random(rows) < changed
    made: dict[str, dict[str, Array]] = {"champion": {}, "challenger": {}}
    common = generator.normal(size=(2, rows))
    for number, metric in enumerate(METRICS):
        for place, model in enumerate(("champion", "challenger")):
            # What one answer gains in ROUGE-L it tends to gain in ROUGE-1 too.
            noise = 0.8 * common[place] + 0.6 * generator.normal(size=rows)
            lift = gain if model == "challenger" else 0.0
            score = np.clip(hardness + swings * (0.15 * noise + lift), 0, 1)
            if metric == "exact_match":
                score = (score > 0.4 - 0.01 * number).astype(np.float64)
            made[model][metric] = np.column_stack([score, np.ones(rows)])
    return RowSet(made)


def verdicts(
    rules: list[GateRule],
    *,
    gain: float,
    rows: int = 200,
    changed: float = 0.3,
    seed: int = 0,
    correction: Correction = "holm",
    pairs: int = PAIRS,
) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(pairs):
        evidence = Evidence(
            simulated(generator, rows=rows, changed=changed, gain=gain), direction=DIRECTION
        )
        verdict = judge(rules, evidence, correction=correction, resamples=1000)
        assert verdict is not None
        found.append(verdict)
    return found


def gains(*metrics: str, **fields: Any) -> list[GateRule]:
    return [GateRule(metric=metric, min_gain=0.0, **fields) for metric in metrics]


def promoted(found: list[dict[str, Any]]) -> int:
    count = sum(verdict["passed"] for verdict in found)
    print(f"{count} of {len(found)} promoted")
    return count


def test_the_allowance_is_that_of_the_binomial_distribution() -> None:
    def more_than(most: int) -> float:
        return 1 - sum(
            math.comb(PAIRS, k) * ALPHA**k * (1 - ALPHA) ** (PAIRS - k) for k in range(most + 1)
        )

    assert more_than(MOST) < 0.01 < more_than(MOST - 1)


@pytest.mark.parametrize("test", ["bootstrap", "permutation"])
@pytest.mark.parametrize(
    ("rows", "changed"),
    [(200, 0.3), (200, 0.04), (25, 1.0)],
    ids=["retrained", "almost the same answers", "few rows"],
)
@pytest.mark.parametrize("metric", ["rougeL", "exact_match"])
def test_equally_good_models_are_promoted_no_more_often_than_alpha(
    test: str, rows: int, changed: float, metric: str
) -> None:
    rules = gains(metric, test=test)
    found = verdicts(rules, gain=0.0, rows=rows, changed=changed, seed=1)
    assert promoted(found) <= MOST


@pytest.mark.parametrize(
    ("test", "correction"),
    [("bootstrap", "holm"), ("bootstrap", "none"), ("permutation", "holm")],
)
def test_several_metrics_promote_no_more_often_than_one(test: str, correction: Correction) -> None:
    found = verdicts(gains(*METRICS, test=test), gain=0.0, seed=2, correction=correction)
    assert promoted(found) <= MOST


def test_corrected_claims_are_wrong_in_any_line_no_more_often_than_alpha() -> None:
    """Not the whole gate: that one of its lines says "better" of models that are equal."""

    def any_claim(found: list[dict[str, Any]]) -> int:
        return sum(any(rule["passed"] for rule in verdict["rules"]) for verdict in found)

    rules = gains(*METRICS)
    corrected = any_claim(verdicts(rules, gain=0.0, seed=3, correction="holm"))
    plain = any_claim(verdicts(rules, gain=0.0, seed=3, correction="none"))
    assert corrected <= MOST
    assert plain > corrected


def test_worse_models_are_not_promoted() -> None:
    assert promoted(verdicts(gains("rougeL"), gain=-0.05, seed=4)) == 0


@pytest.mark.parametrize("test", ["bootstrap", "permutation"])
@pytest.mark.parametrize(("gain", "least"), [(0.04, 40), (0.08, 130), (0.15, 195)])
def test_better_models_are_promoted_the_more_often_the_better_they_are(
    test: str, gain: float, least: int
) -> None:
    """60 of 200 rows change and gain `gain` each, so that the mean gains three tenths of it."""
    power = promoted(verdicts(gains("rougeL", test=test), gain=gain, seed=5))
    print(f"{test}: {power} of {PAIRS} promoted that gain {0.3 * gain:.3f} on the mean")
    assert power >= least


def test_non_inferiority_promotes_equals_and_stops_what_is_worse_by_the_margin() -> None:
    rules = [GateRule(metric="rougeL", min_gain=-0.03)]
    assert promoted(verdicts(rules, gain=0.0, seed=6)) >= 190
    # All of 200 rows lose 0.03 or a little less where the scale ends: the margin itself.
    worse = verdicts(rules, gain=-0.033, changed=1.0, seed=7)
    assert promoted(worse) <= MOST
