"""What a person reads about an evaluation: `report.md`, and the shorter `summary.md`."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.evaluation.gate_table import gate_markdown
from tasks.evaluation.settings import LOWER_IS_BETTER, METRICS, NO_DIRECTION, Metric
from tasks.markdown import cell, code_block, table
from tasks.samples import Sample

NAMES = {"base": "base", "champion": "champion", "challenger": "adapter"}
KINDS = {
    "gain": "among the largest gains over the base",
    "regression": "among the largest losses against the base",
    "random": "picked at random",
}
SUMMARY_SAMPLES = 4
_SLICED: tuple[Metric, ...] = ("rougeL", "chrf", "exact_match", "accuracy", "loss")
PROMPT_CHARACTERS = 700
ANSWER_CHARACTERS = 500


def report(facts: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """The whole report, from the content of `metrics.json` and the chosen samples."""
    parts = ["# Evaluation", _how(facts), "## Result", _verdict(facts), *_result(facts)]
    parts += [*_suites(facts), *_slices(facts)]
    if samples:
        parts += ["## Sample answers", *(_sample(sample) for sample in samples)]
    return "\n\n".join(parts) + "\n"


def summary(facts: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """The result, and a few samples of different kinds."""
    few: list[Sample] = []
    for kind in ("gain", "random", "regression", "random"):
        few += [s for s in samples if s.kind == kind and s not in few][:1]
    parts = ["# Evaluation", _verdict(facts), *_result(facts)]
    if few:
        parts += ["## Sample answers", *(_sample(s) for s in few[:SUMMARY_SAMPLES])]
    return "\n\n".join(parts) + "\n"


def _how(facts: Mapping[str, Any]) -> str:
    answers = facts["answers"]
    names = [NAMES[model] for model, values in facts["metrics"].items() if values is not None]
    lines = [
        f"{', '.join(names[:-1]).capitalize()} and {names[-1]} answered the same {facts['rows']} test "
        f"rows, greedily, with at most {answers['max_new_tokens']} tokens an answer, "
        f"{answers['batch_size']} rows at a time, in {answers['dtype']} on {answers['device']}"
        + (f", the base in {answers['quantization']}" if answers["quantization"] != "none" else "")
        + ".",
        "Loss, perplexity and token accuracy are measured on the reference answers; the other "
        "metrics compare what the models wrote with the references. All shares and scores are on "
        "0-1, perplexity and mean length (in tokens) are not.",
        f"Intervals are paired bootstrap intervals at 95 % from {facts['bootstrap_samples']} "
        "resamples of the rows. “Better” and “worse” mean that the interval excludes zero.",
    ]
    if facts["pairs"]:
        lines.append(
            f"Preference accuracy is the share of the {facts['pairs']} pairs among the rows whose better "
            "answer is the more likely one to the model: as a whole, and by its mean over tokens, which "
            "does not favour short answers."
        )
    if answers["bad_answers"]:
        lines.append(
            f"{answers['bad_answers']} more test rows hold answers that were judged bad; nothing is "
            "measured by them."
        )
    for model, ends in answers.get("ended_with", {}).items():
        told = [f"{count} with `{token}`" for token, count in ends.items()]
        told.append(f"{facts['rows'] - sum(ends.values())} at the limit")
        lines.append(f"The {NAMES[model]}'s answers ended: {', '.join(told)}.")
    if facts["seen_by_champion"]:
        lines.append(
            f"{facts['seen_by_champion']} test rows were training rows of the champion and were left "
            "out for all models alike."
        )
    if empty := _empty_answers(facts):
        lines.append(empty)
    if missing := facts.get("missing_verdicts"):
        lines.append(
            f"The judge gave no usable verdict on {missing} rows; they count for no model in `judge`."
        )
    lines += [cell(note, 500) for note in facts.get("notes", ())]
    if answers["shortened_rows"]:
        lines.append(
            f"Rows whose prompt leaves less room than that in the model's context, so that their "
            f"answers end sooner: {answers['shortened_rows']}."
        )
    return "\n".join(lines)


def _verdict(facts: Mapping[str, Any]) -> str:
    lines = []
    for model, differences in facts["differences"].items():
        if differences is None:
            continue
        found = {name: _compare(facts, name, value) for name, value in differences.items()}
        better = [name for name, word in found.items() if word == "better"]
        worse = [name for name, word in found.items() if word == "worse"]
        lines.append(
            f"Against the {NAMES[model]} the adapter is better in {_listed(better)} "
            f"and worse in {_listed(worse)}."
        )
        if facts["same_answers"].get(model) == facts["rows"]:
            lines.append(
                f"**Every one of its answers equals the {NAMES[model]}'s, character by character.**"
            )
    for name, answerer in facts["answerers"].items():
        lines.append(f"Against the trivial answerer “{name}” it {_beats(facts, answerer)}.")
    if facts["not_finite"]:
        lines.append(f"**Not a finite number, and left out: {', '.join(facts['not_finite'])}.**")
    gate = facts["gate"]
    if gate is None:
        lines.append("The recipe has no gate: every trained adapter may be promoted.")
    else:
        failed = sum(not rule["passed"] for rule in gate["rules"])
        lines.append(
            "**The gate lets it pass.**"
            if gate["passed"]
            else f"**The gate refuses it: {failed} of {len(gate['rules'])} rules fail.**"
        )
    return "\n".join(f"- {line}" for line in lines)


def _result(facts: Mapping[str, Any]) -> list[str]:
    parts = [_metric_table(facts), _answerer_table(facts)]
    if facts["gate"] is not None:
        parts.append(gate_markdown(facts["gate"]))
    return parts


def _suites(facts: Mapping[str, Any]) -> list[str]:
    """Frozen general sets and harness tasks: what the training made the base forget."""
    parts = []
    for name, suite in facts.get("suites", {}).items():
        told = [f"The same on {suite['rows']} rows of the frozen general set `{name}`:"]
        if empty := _empty_answers(suite):
            told.append(empty)
        told += [cell(note, 500) for note in suite.get("notes", ())]
        parts += ["\n".join(told), _metric_table({**facts, "not_finite": [], **suite})]
    harness = facts["answers"].get("lm_eval") or {}
    if harness:
        models = [model for model in NAMES if model in harness]
        names = dict.fromkeys(
            (task, metric) for m in models for task, found in harness[m].items() for metric in found
        )
        lines = [
            [
                cell(task, 80),
                cell(metric, 80),
                *(_number(harness[m].get(task, {}).get(metric)) for m in models),
            ]
            for task, metric in names
        ]
        parts.append(table(["harness task", "metric", *(NAMES[m] for m in models)], lines))
    return ["## What it kept of the base", *parts] if parts else []


def _slices(facts: Mapping[str, Any]) -> list[str]:
    """One table a slicing: the challenger's differences where the report's main metrics are."""
    rival = "base" if facts["differences"]["champion"] is None else "champion"
    parts = []
    for slicing, labels in facts.get("slices", {}).items():
        shown = [
            metric
            for metric in _SLICED
            if any(metric in one["differences"].get(rival, {}) for one in labels.values())
        ]
        lines = [
            [
                cell(label, 80),
                str(one["rows"]),
                *(
                    _difference(facts, name, one["differences"].get(rival, {}).get(name))
                    for name in shown
                ),
            ]
            for label, one in sorted(labels.items(), key=lambda item: -item[1]["rows"])
        ]
        parts.append(table([f"by {cell(slicing, 80)}", "rows", *shown], lines))
    told = f"The adapter's differences to the {NAMES[rival]} (95 % intervals)."
    return ["## Slices", told, *parts] if parts else []


def _empty_answers(measured: Mapping[str, Any]) -> str:
    found = {model: many for model, many in measured.get("empty_answers", {}).items() if many}
    told = ", ".join(f"{NAMES[model]} {many}" for model, many in found.items())
    return f"Empty answers, which score 0: {told}." if told else ""


def _metric_table(facts: Mapping[str, Any]) -> str:
    models = [model for model, values in facts["metrics"].items() if values is not None]
    others = [model for model in models if model != "challenger"]
    head = ["metric", *(NAMES[model] for model in models)]
    head += [f"adapter − {NAMES[model]} (95 % interval)" for model in others]
    lines = []
    for name in _measured(facts):
        line = [name + (" (lower is better)" if _direction(facts, name) < 0 else "")]
        line += [_number(facts["metrics"][model].get(name)) for model in models]
        line += [
            _difference(facts, name, facts["differences"][model].get(name)) for model in others
        ]
        lines.append(line)
    return table(head, lines)


def _measured(facts: Mapping[str, Any]) -> list[str]:
    """Metrics that some model has, or would have if it were a number; the user's own last."""
    found = {name for values in facts["metrics"].values() for name in values or ()}
    found |= {name.partition(".")[2] for name in facts["not_finite"]}
    return [*(name for name in METRICS if name in found), *sorted(found - {*METRICS})]


def _answerer_table(facts: Mapping[str, Any]) -> str:
    lines = [
        [
            name,
            str(answerer["rows"]),
            *(
                text
                for metric in ("rougeL", "chrf")
                for text in (
                    _number(answerer["metrics"].get(metric)),
                    _difference(facts, metric, answerer["differences"].get(metric)),
                )
            ),
        ]
        for name, answerer in facts["answerers"].items()
    ]
    head = ["trivial answerer", "rows", "rougeL", "adapter − it", "chrf", "adapter − it"]
    return table(head, lines)


def _sample(sample: Sample) -> str:
    lines = [["reference", "", cell(sample.reference, ANSWER_CHARACTERS)]]
    lines += [
        [NAMES[model], _number(sample.scores.get(model)), cell(text, ANSWER_CHARACTERS)]
        for model, text in sample.answers.items()
    ]
    return "\n\n".join(
        [
            f"Row {cell(sample.id, 80)}, {KINDS[sample.kind]}:",
            code_block(sample.prompt, PROMPT_CHARACTERS),
            table(["", "rougeL", "text"], lines),
        ]
    )


def _beats(facts: Mapping[str, Any], answerer: Mapping[str, Any]) -> str:
    words = {
        metric: _compare(facts, metric, answerer["differences"][metric])
        for metric in ("rougeL", "chrf")
        if metric in answerer["differences"]
    }
    won = [metric for metric, word in words.items() if word == "better"]
    lost = [metric for metric, word in words.items() if word == "worse"]
    if len(won) == 2:
        return "wins in rougeL and chrf"
    open_ = [metric for metric, word in words.items() if word == "no clear difference"]
    said = [f"wins in {_listed(won)}"] if won else []
    said += [f"loses in {_listed(lost)}"] if lost else []
    said += [f"shows no clear difference in {_listed(open_)}"] if open_ else []
    return " and ".join(said) or "cannot be compared"


def _direction(facts: Mapping[str, Any], metric: str) -> int:
    """1, -1 or 0; a metric of the user's own says it itself."""
    usual = 0 if metric in NO_DIRECTION else -1 if metric in LOWER_IS_BETTER else 1
    return int(facts.get("directions", {}).get(metric, usual))


def _compare(facts: Mapping[str, Any], metric: str, difference: Mapping[str, float]) -> str:
    low, high = difference["low"], difference["high"]
    way = _direction(facts, metric)
    if way == 0:
        return ""
    if low <= 0 <= high:
        return "no clear difference"
    return "better" if (high < 0) == (way < 0) else "worse"


def _difference(
    facts: Mapping[str, Any], metric: str, difference: Mapping[str, float] | None
) -> str:
    if difference is None:
        return "–"
    mean, low, high = difference["mean"], difference["low"], difference["high"]
    word = _compare(facts, metric, difference)
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" + (f" {word}" if word else "")


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "no metric"
