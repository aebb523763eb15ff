"""The gate: whether an adapter satisfies every rule under which it may be promoted, and why."""

from collections.abc import Sequence
from typing import Any

from tasks.evaluation.gate_evidence import Evidence
from tasks.evaluation.gate_rule import JudgedRule, Measurements
from tasks.evaluation.gate_settings import GateRule
from tasks.evaluation.paired import Correction, adjustments, resamples_for

RESAMPLES = 2000


def judge(
    rules: Sequence[GateRule],
    evidence: Evidence,
    *,
    correction: Correction = "holm",
    resamples: int = RESAMPLES,
) -> dict[str, Any] | None:
    """`{"passed": bool, "correction": ..., "rules": [...]}`, plain JSON values; None without rules.

    Each rule's entry has the rule's fields, `rule` (in words), `passed` and `why`, and as far as they
    were measured `judged_against`, `rows`, `differing_rows`, `value`, `reference`, `gain` with `low`
    and `high` (in the better direction), `p` and, for the claims of a gain, `p_corrected`. A rule on
    slices has these of its worst slice, with all of them in `slices` and those with too few rows in
    `not_judged`.

    What cannot be judged fails: a metric that is missing or no number, too few rows, a slice or suite
    that was not measured, a champion that could not be scored. An adapter whose every answer is the
    champion's fails whatever the rules tolerate: a tie keeps the champion.
    """
    if not rules:
        return None
    claims = sum(rule.claims_a_gain for rule in rules)
    levels = [rule.level for rule in rules if rule.level is not None]
    counted = resamples_for(resamples, claims, max(levels, default=0.5))
    measurements = Measurements(rules, evidence, counted)
    judged = [JudgedRule(rule, evidence, measurements) for rule in rules]
    claiming = [one for one in judged if one.rule.claims_a_gain]
    found = adjustments([one.p for one in claiming], correction)
    for one, adjustment in zip(claiming, found, strict=True):
        one.adjustment = adjustment
    entries = [one.entry(claims if correction != "none" else 1) for one in judged]
    entries += _about_the_champion(evidence)
    return {
        "passed": all(entry["passed"] for entry in entries),
        "correction": correction,
        "rules": entries,
    }


def _about_the_champion(evidence: Evidence) -> list[dict[str, Any]]:
    """What refuses an adapter whatever the rules say."""
    line = {"metric": "all", "against": "champion", "judged_against": "champion", "passed": False}
    if evidence.champion_problem is not None:
        return [
            line
            | {
                "rule": "a champion is replaced only after it was scored on the same rows",
                "why": f"there is a champion, and it could not be scored: {evidence.champion_problem}",
            }
        ]
    if evidence.has_champion and "champion" in evidence.same_answers:
        rows = evidence.test.rows
        return [
            line
            | {
                "rule": "a tie keeps the champion",
                "rows": rows,
                "why": f"all {rows} answers equal the champion's, character by character; a tie keeps the champion",
            }
        ]
    return []
