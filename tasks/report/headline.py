"""The first screen: the verdict, why, what changed, and what a person can do now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.report.markup import count, number, paragraph, signed, text
from tasks.report.measures import MAIN, NAMES, ordered, rival_of, split_by_word, word
from tasks.report.run import ReportedRun

State = Literal["good", "bad", "wait"]
TILES = 4
NAMED_RULES = 3
"""Broken rules told on the first screen; the table below has them all."""
_MARKS: dict[State, str] = {"good": "✓", "bad": "✗", "wait": "●"}


@dataclass(frozen=True)
class Verdict:
    """What the run came to, as far as it has come."""

    state: State
    title: str
    told: str


def verdict_of(run: ReportedRun, gate: Mapping[str, Any] | None) -> Verdict:
    """The verdict in a few words: the run's end where it has ended, else what the gate said."""
    outcome = run.outcome
    reason = "" if outcome.outcome == "failed" else outcome.reason
    rules: Sequence[Mapping[str, Any]] = (gate or {}).get("rules") or ()
    if gate is not None and not gate.get("passed"):
        broken = sum(not rule.get("passed") for rule in rules)
        stays = f" Version {run.champion} stays champion." if run.champion else ""
        verb = "fails" if broken == 1 else "fail"
        told = f"{broken} of {count(len(rules), 'rule')} {verb}; nothing goes live.{stays}"
        if outcome.outcome in ("registered", "awaiting_approval"):
            # The recipe registers what the gate refuses, so that it can be looked at.
            told += f" {reason}"
        return Verdict("bad", "Refused by the gate", told)
    aliases = (outcome.model_version or {}).get("aliases")
    if isinstance(aliases, list) and "champion" in aliases:
        return Verdict("good", "Champion now", reason)
    if outcome.outcome == "awaiting_approval":
        return Verdict("wait", "Waiting for a person's approval", reason)
    if outcome.outcome == "registered":
        return Verdict("good", "Registered as challenger", reason)
    if outcome.outcome == "refused":
        return Verdict("bad", "Refused", reason)
    if gate is None:
        told = "The recipe has no gate, so nothing speaks against promotion, and nothing for it."
        return Verdict("wait", "Evaluated; there is no gate", told)
    told = f"All {count(len(rules), 'rule')} hold." if len(rules) > 1 else "Its rule holds."
    return Verdict("good", "Passed the gate", told)


def headline(run: ReportedRun, evaluation: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """The top of the page."""
    gate = evaluation.get("gate")
    verdict = verdict_of(run, gate)
    broken = [rule for rule in (gate or {}).get("rules") or () if not rule.get("passed")]
    why = "".join(
        f"<li><b>{text(rule.get('rule') or rule.get('metric') or '')}</b>: {text(rule.get('why') or '')}</li>"
        for rule in broken[:NAMED_RULES]
    )
    if len(broken) > NAMED_RULES:
        why += f'<li><a href="#gate">{len(broken) - NAMED_RULES} more</a></li>'
    version = run.outcome.model_version or {}
    named = f" · version {text(version['version'])}" if version.get("version") else ""
    notes = "".join(paragraph(text(note), "warn") for note in run.notes)
    return (
        f'<header><p class="over">Retraining of <b>{text(run.name)}</b>{named} · '
        f"as of {run.written:%Y-%m-%d %H:%M %Z}</p>\n"
        f'<div class="verdict {verdict.state}" role="status"><h1>{_MARKS[verdict.state]} '
        f"{text(verdict.title)}</h1>{paragraph(text(verdict.told)) if verdict.told else ''}"
        f"{f'<ul>{why}</ul>' if why else ''}</div>\n"
        f"{notes}{_tiles(evaluation)}\n"
        f"<h2>What changed</h2>{_changes(run, evaluation, training)}</header>\n"
    )


def _tiles(evaluation: Mapping[str, Any]) -> str:
    metrics = evaluation.get("metrics") or {}
    mine = metrics.get("challenger") or {}
    rival = rival_of(evaluation)
    theirs = metrics.get(rival) or {}
    differences = (evaluation.get("differences") or {}).get(rival) or {}
    gate = evaluation.get("gate") or {}
    wanted = {*MAIN, *(str(rule.get("metric")) for rule in gate.get("rules") or ())}
    names = [name for name in ordered(evaluation, mine) if name in wanted]
    # Zero here and there, as exact_match often is, tells nothing.
    names = [name for name in names if mine.get(name) or theirs.get(name)]
    tiles = []
    for name in (names or list(mine))[:TILES]:
        difference = differences.get(name)
        said = word(evaluation, name, difference) if difference else ""
        change = ""
        if difference:
            told = {"better": "better", "worse": "worse", "unclear": "no clear difference"}.get(
                said, ""
            )
            change = f'<div class="change {said}"><b>{signed(difference["mean"])}</b> {told}</div>'
        tiles.append(
            f'<div class="tile"><div class="name" title="{text(name)}">{text(name)}</div>'
            f'<div class="value">{number(mine.get(name))}</div>'
            f'<div class="hint">{NAMES[rival]} {number(theirs.get(name))}</div>{change}</div>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _changes(run: ReportedRun, evaluation: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    lines = []
    differences: Mapping[str, Any] = evaluation.get("differences") or {}
    for model in ("champion", "base"):
        found = differences.get(model)
        if not found:
            continue
        name = NAMES[model]
        if model == "champion" and run.champion:
            name = f"champion (version {run.champion})"
        words = split_by_word(evaluation, found)
        lines.append(
            f"Against the <b>{text(name)}</b>: {_named('better', words['better'])}, "
            f"{_named('worse', words['worse'])}; no clear difference in {count(len(words['unclear']), 'metric')}."
        )
    if "champion" in differences and not differences["champion"]:
        problem = (evaluation.get("answers") or {}).get("champion_problem")
        lines.append(
            f"<b>The champion could not be scored</b>: {text(problem)}"
            if problem
            else "There is no champion to compare with."
        )
    for name, suite in (evaluation.get("suites") or {}).items():
        against = (suite.get("differences") or {}).get("base") or {}
        words = split_by_word(evaluation, against)
        lines.append(
            f"On the general set <b>{text(name)}</b>, against the base: "
            f"{_named('better', words['better'])}, {_named('worse', words['worse'])}."
        )
    if "first_loss" in training and "final_loss" in training:
        lines.append(
            f"Training loss went from {number(training['first_loss'])} to "
            f"{number(training['final_loss'])} in {count(int(training.get('steps') or 0), 'step')}."
        )
    if run.new_rows_share is not None:
        lines.append(
            f"{run.new_rows_share:.0%} of the training rows are new to the champion's dataset."
        )
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


def _named(said: str, metrics: Sequence[str]) -> str:
    if not metrics:
        return f"{said} in nothing"
    shown = ", ".join(text(name) for name in metrics[:6])
    more = f" and {len(metrics) - 6} more" if len(metrics) > 6 else ""
    return f'<span class="change {said}">{said}</span> in {shown}{more}'
