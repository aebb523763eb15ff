"""The gate: which rules an adapter must satisfy before it may be promoted, and whether it does."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.evaluation.settings import LOWER_IS_BETTER, PREFERENCE_METRICS, GateRule

Metrics = Mapping[str, float]
Intervals = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]


def judge(
    rules: Sequence[GateRule], metrics: Mapping[str, Metrics | None], intervals: Intervals
) -> dict[str, Any] | None:
    """`{"passed": bool, "rules": [...]}`; None without rules.

    `metrics`: `base`, `champion` (None while there is none), `challenger` -> metric -> value.
    `intervals`: `base`, `champion` -> metric -> confidence (`str(float)`) -> low and high of
    challenger minus that model.

    Each rule's entry: the rule's fields, `judged_against`, `value` (the challenger's), `reference`
    (the other's), `gain` with `low` and `high` (in the better direction), `passed`, `why`. A value
    that is missing or not a number fails. A challenger that equals the champion in every number
    fails whatever the rules tolerate: a tie keeps the champion.
    """
    if not rules:
        return None
    verdicts = [_judge_rule(rule, metrics, intervals) for rule in rules]
    champion, challenger = metrics.get("champion"), metrics["challenger"]
    if champion is not None and champion == challenger:
        verdicts.append(
            {
                "metric": "all",
                "against": "champion",
                "judged_against": "champion",
                "passed": False,
                "why": "every metric equals the champion's; a tie keeps the champion",
            }
        )
    return {"passed": all(verdict["passed"] for verdict in verdicts), "rules": verdicts}


def _judge_rule(
    rule: GateRule, metrics: Mapping[str, Metrics | None], intervals: Intervals
) -> dict[str, Any]:
    verdict: dict[str, Any] = rule.model_dump(exclude_none=True)
    if rule.against is None:
        verdict.pop("confidence", None)
    challenger = metrics["challenger"]
    value = None if challenger is None else challenger.get(rule.metric)
    if value is None or not math.isfinite(value):
        why = f"the adapter's {rule.metric} is missing or no number"
        if rule.metric in PREFERENCE_METRICS:
            why += "; it is measured where test rows are pairs of answers"
        verdict |= {"passed": False, "why": why}
        return verdict
    verdict["value"] = value
    return verdict | (
        _bound(rule, value) if rule.against is None else _gain(rule, value, metrics, intervals)
    )


def _bound(rule: GateRule, value: float) -> dict[str, Any]:
    if rule.min is not None and value < rule.min:
        return {"passed": False, "why": f"{value:.4g} is below the least allowed, {rule.min:g}"}
    if rule.max is not None and value > rule.max:
        return {"passed": False, "why": f"{value:.4g} is above the most allowed, {rule.max:g}"}
    return {"passed": True, "why": f"{value:.4g} is within its bounds"}


def _gain(
    rule: GateRule, value: float, metrics: Mapping[str, Metrics | None], intervals: Intervals
) -> dict[str, Any]:
    assert rule.against is not None
    assert rule.min_gain is not None
    other = metrics.get(rule.against)
    against: str = rule.against
    note = ""
    if other is None and rule.against == "champion":
        against, other = "base", metrics["base"]
        note = " (there is no champion yet, so the base takes its place)"
    reference = None if other is None else other.get(rule.metric)
    span = intervals.get(against, {}).get(rule.metric, {}).get(str(rule.confidence))
    if reference is None or span is None or not all(map(math.isfinite, (reference, *span))):
        why = f"the {against}'s {rule.metric} or its interval is missing or no number{note}"
        return {"judged_against": against, "passed": False, "why": why}
    gain, low, high = value - reference, span[0], span[1]
    if rule.metric in LOWER_IS_BETTER:
        gain, low, high = -gain, -high, -low
    passed = low > rule.min_gain
    why = (
        f"gain over the {against} {gain:+.4g}; its {100 * rule.confidence:g} % interval "
        f"starts at {low:+.4g}, {'above' if passed else 'not above'} {rule.min_gain:g}{note}"
    )
    return {
        "judged_against": against,
        "reference": reference,
        "gain": gain,
        "low": low,
        "high": high,
        "passed": passed,
        "why": why,
    }
