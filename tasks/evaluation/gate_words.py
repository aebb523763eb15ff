"""The gate's sentences: what a rule asks for, and why it holds or does not."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.evaluation.gate_numbers import Numbers
from tasks.evaluation.gate_settings import GateRule

FAILED_SLICES_NAMED = 5


def rule_in_words(rule: GateRule, metric: str) -> str:
    """`rougeL: gain over the champion above 0`."""
    if rule.min_gain is not None:
        claim = f"gain over the {rule.opponent} above {rule.min_gain:g}"
    elif rule.max_drop is not None:
        claim = f"drop against the {rule.opponent} at most {rule.max_drop:g}"
        claim += " beyond chance" if rule.level is not None else ""
    else:
        bounds = [f"at least {rule.min:g}"] if rule.min is not None else []
        bounds += [f"at most {rule.max:g}"] if rule.max is not None else []
        claim = " and ".join(bounds)
    what = metric if rule.suite is None else f"{rule.suite}: {metric}" if metric else rule.suite
    where = {None: "", "*": ", in every slice"}.get(rule.slice, f", in each slice {rule.slice}")
    if rule.slice is not None and "=" in rule.slice:
        where = f", in the slice {rule.slice}"
    return f"{what}: {claim}{where}"


def why(
    rule: GateRule,
    numbers: Numbers,
    against: str | None,
    p: float | None,
    claims: int,
    *,
    passed: bool,
) -> str:
    """Why one set of rows satisfies the rule, or does not.

    `p` is what was compared with half of one minus the confidence, corrected for `claims` claims.
    """
    if not rule.compares:
        return _bound(rule, numbers)
    assert numbers.gain is not None
    assert numbers.low is not None
    assert numbers.high is not None
    word = "gain" if numbers.gain >= 0 else "decline"
    told = f"{word} against the {against} {numbers.gain:+.4g}"
    if rule.level is None:
        return f"{told}, {'within' if passed else 'more than'} the drop allowed, {rule.max_drop:g}"
    assert p is not None
    told += (
        f"; its {100 * rule.level:g} % interval, {numbers.low:+.4g} to {numbers.high:+.4g}, "
        + _place(rule, numbers)
    )
    allowed = (1 - rule.level) / 2
    corrected = f", corrected for {claims} claims" if rule.claims_a_gain and claims > 1 else ""
    told += f" (p {_p(p)}{corrected}; at most {allowed:.4g} passes)"
    if not passed and numbers.gain > rule.margin:
        told += f"; {numbers.differing} of {numbers.rows} rows differ, so this may be chance"
    return told


def why_of_slices(
    slices: Sequence[Mapping[str, Any]],
    worst: Mapping[str, Any],
    not_judged: Mapping[str, int],
    least_rows: int,
) -> str:
    """The whole rule's reason, from its slices' entries."""
    failed = [one["slice"] for one in slices if not one["passed"]]
    count = f"{len(slices)} slice" + ("s" if len(slices) > 1 else "")
    if failed:
        named = ", ".join(failed[:FAILED_SLICES_NAMED])
        more = len(failed) - FAILED_SLICES_NAMED
        named += f" and {more} more" if more > 0 else ""
        told = (
            f"{len(failed)} of {count} fail ({named}); the worst, {worst['slice']}: {worst['why']}"
        )
    else:
        told = f"each of {count} holds; the weakest, {worst['slice']}: {worst['why']}"
    if not_judged:
        told += f"; not judged, with fewer than {least_rows} rows: {len(not_judged)}"
    return told


def _bound(rule: GateRule, numbers: Numbers) -> str:
    value = numbers.value
    assert value is not None
    if rule.min is not None and value < rule.min:
        return f"{value:.4g} is below the least allowed, {rule.min:g}"
    if rule.max is not None and value > rule.max:
        return f"{value:.4g} is above the most allowed, {rule.max:g}"
    return f"{value:.4g} is within its bounds"


def _place(rule: GateRule, numbers: Numbers) -> str:
    assert numbers.low is not None
    margin = f"{rule.margin:g}"
    return f"lies above {margin}" if numbers.low > rule.margin else f"does not lie above {margin}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "below 0.001"
