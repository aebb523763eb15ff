"""The metric table: base, champion and adapter, each difference with its interval drawn beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.report.markup import MISSING, count, number, paragraph, section, signed, table, text
from tasks.report.measures import NAMES, Word, direction, models_of, ordered, word

_ARROWS = {1: "↑", -1: "↓", 0: ""}
_BAR, _ROOM = 96, 4
"""Width of an interval's picture, and what stays free at its ends."""


def metrics_section(evaluation: Mapping[str, Any]) -> str:
    """The table of all metrics, the trivial answerers, and what a person should know about both."""
    rows = int(evaluation.get("rows") or 0)
    metrics = evaluation.get("metrics") or {}
    if not any(metrics.values()):
        return section("metrics", "Metrics", paragraph("Nothing was measured."))
    told = (
        f"All models answered the same {count(rows, 'test row')}, greedily. ↑ more is better, ↓ less is. "
        "Intervals are paired bootstrap intervals at 95 %: a bar that keeps clear of the dashed line, "
        "which is zero, is hardly chance."
    )
    return section(
        "metrics",
        "Metrics",
        paragraph(told, "hint"),
        metric_table(evaluation, metrics, evaluation.get("differences") or {}),
        *_cautions(evaluation),
        _answerers(evaluation),
    )


def suites_section(evaluation: Mapping[str, Any]) -> str:
    """What the adapter lost of general abilities, and harness tasks; empty when neither was measured."""
    parts = []
    for name, suite in (evaluation.get("suites") or {}).items():
        parts.append(
            paragraph(
                f"<strong>{text(name)}</strong>: {count(int(suite.get('rows') or 0), 'row')} of a frozen "
                "general set. What is lost against the base here, the training made it forget."
            )
        )
        parts.append(
            metric_table(evaluation, suite.get("metrics") or {}, suite.get("differences") or {})
        )
        parts += [paragraph(line, "warn") for line in _empty(suite)]
        parts += [paragraph(text(note), "warn") for note in suite.get("notes") or ()]
    harness = (evaluation.get("answers") or {}).get("lm_eval") or {}
    if harness:
        models = [model for model in NAMES if model in harness]
        names = dict.fromkeys(
            (task, metric)
            for model in models
            for task, values in harness[model].items()
            for metric in values
        )
        parts.append(paragraph("<strong>lm-evaluation-harness</strong>, without intervals"))
        parts.append(
            table(
                ["task", "metric", *(NAMES[model] for model in models)],
                [
                    [
                        text(task),
                        text(metric),
                        *(number(harness[m].get(task, {}).get(metric)) for m in models),
                    ]
                    for task, metric in names
                ],
                numbers_from=2,
            )
        )
    return section("retention", "What it kept of the base", *parts) if parts else ""


def metric_table(
    evaluation: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float] | None],
    differences: Mapping[str, Mapping[str, Mapping[str, float]] | None],
) -> str:
    """Metric by model, then the adapter's difference to each of the others."""
    models = models_of(metrics)
    others = [model for model in models if model != "challenger" and differences.get(model)]
    missing = [name.partition(".")[2] for name in evaluation.get("not_finite") or ()]
    names = ordered(evaluation, [n for m in models for n in metrics[m] or ()] + missing)
    head = ["metric", *(NAMES[model] for model in models)]
    head += [f"adapter − {NAMES[model]}" for model in others]
    lines = []
    for name in names:
        line = [f'{text(name)} <span class="hint">{_ARROWS[direction(evaluation, name)]}</span>']
        line += [number((metrics[model] or {}).get(name)) for model in models]
        line += [
            difference_cell(evaluation, name, (differences[model] or {}).get(name))
            for model in others
        ]
        lines.append(line)
    return table(head, lines, numbers_from=1)


def difference_cell(
    evaluation: Mapping[str, Any], metric: str, difference: Mapping[str, float] | None
) -> str:
    """A difference with its interval, in words, in figures and as a bar."""
    if not difference:
        return MISSING
    said = word(evaluation, metric, difference)
    low, high = difference["low"], difference["high"]
    if low == difference["mean"] == high == 0:
        return '<span class="diff same">equal</span>'
    return (
        f'<span class="diff {said}">{interval_bar(low, difference["mean"], high)}'
        f"<b>{signed(difference['mean'])}</b> <small>{signed(low)} to {signed(high)}</small>"
        f"{_mark(said)}</span>"
    )


def interval_bar(low: float, mean: float, high: float) -> str:
    """The interval on a line whose middle is zero, as wide as the interval asks for."""
    reach = max(abs(low), abs(high), abs(mean)) or 1.0
    middle = _BAR / 2
    scale = (middle - _ROOM) / reach
    left, dot, right = (middle + value * scale for value in (low, mean, high))
    return (
        f'<svg class="bar" viewBox="0 0 {_BAR} 14" aria-hidden="true">'
        f'<path class="zero" d="M{middle:g} 0V14"/>'
        f'<path class="span" d="M{left:.1f} 7H{max(right, left + 0.5):.1f}"/>'
        f'<circle cx="{dot:.1f}" cy="7" r="3"/></svg>'
    )


def _mark(said: Word) -> str:
    return f'<span class="mark">{said if said in ("better", "worse") else ""}</span>'


def _answerers(evaluation: Mapping[str, Any]) -> str:
    found = evaluation.get("answerers") or {}
    if not found:
        return ""
    shown = [
        metric
        for metric in ("rougeL", "chrf")
        if any(metric in (one.get("metrics") or {}) for one in found.values())
    ]
    head = ["trivial answerer", "rows"]
    for metric in shown:
        head += [metric, f"adapter − it, {metric}"]
    lines = []
    for name, one in found.items():
        line = [text(name), number(int(one.get("rows") or 0))]
        for metric in shown:
            line.append(number((one.get("metrics") or {}).get(metric)))
            line.append(
                difference_cell(evaluation, metric, (one.get("differences") or {}).get(metric))
            )
        lines.append(line)
    return (
        "<h3>Against answers that need no model</h3>"
        + paragraph(
            "An adapter that does not beat these has learned the form, not the task.", "hint"
        )
        + table(head, lines, numbers_from=1)
    )


def _cautions(evaluation: Mapping[str, Any]) -> list[str]:
    answers: Mapping[str, Any] = evaluation.get("answers") or {}
    lines: list[str] = list(_empty(evaluation))
    rows = evaluation.get("rows")
    for model, equal in (evaluation.get("same_answers") or {}).items():
        if equal == rows and rows:
            lines.append(
                f"Every one of the adapter's answers equals the {NAMES.get(model, text(model))}'s, "
                "character by character."
            )
    if problem := answers.get("champion_problem"):
        lines.append(f"There is a champion, and it could not be scored: {text(problem)}")
    if missing := evaluation.get("not_finite"):
        lines.append(f"No finite numbers, and left out: {text(', '.join(missing))}.")
    if verdicts := evaluation.get("missing_verdicts"):
        lines.append(f"The judge gave no usable verdict on {count(verdicts, 'row')}.")
    if seen := evaluation.get("seen_by_champion"):
        lines.append(
            f"{count(seen, 'test row')} were training rows of the champion and were left out for all."
        )
    if short := answers.get("shortened_rows"):
        lines.append(
            f"{count(short, 'row')} left less room than {answers.get('max_new_tokens')} tokens for an answer."
        )
    lines += [text(note) for note in evaluation.get("notes") or ()]
    return [paragraph(line, "warn") for line in lines]


def _empty(measured: Mapping[str, Any]) -> Sequence[str]:
    found = {m: n for m, n in (measured.get("empty_answers") or {}).items() if n}
    if not found:
        return []
    told = ", ".join(f"{NAMES.get(model, text(model))} {many:,}" for model, many in found.items())
    return [f"Empty answers, which score 0: {told}."]
