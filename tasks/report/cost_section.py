"""What the run cost: wall time of each stage, device hours, tokens a second."""

import re
from collections.abc import Mapping
from typing import Any

from tasks.artifacts import STAGES
from tasks.durations import duration
from tasks.report.markup import MISSING, number, paragraph, section, table, text
from tasks.report.measures import MODELS, NAMES
from tasks.report.run import ReportedRun


def cost_section(
    run: ReportedRun, training: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> str:
    """Stages, then what training and evaluation took of the device."""
    return section(
        "cost",
        "Cost",
        '<div class="pair">',
        _stages(run),
        _device(run, training, evaluation),
        "</div>",
        _answering(evaluation),
    )


def device_hours(seconds: float, device: str, processes: int = 1) -> tuple[str, float]:
    """`GPU-hours` or `CPU-hours` (of single cores) and how many; `device` as the workers name it."""
    if not device.startswith("cpu"):
        return "GPU-hours", seconds * processes / 3600
    threads = re.search(r"(\d+) threads?", device)
    if threads is None:
        return "machine-hours", seconds / 3600
    return "CPU-hours", seconds * int(threads[1]) * processes / 3600


def _stages(run: ReportedRun) -> str:
    lines = []
    total = 0.0
    for stage in STAGES:
        timing = run.outcome.stages.get(stage)
        if timing is None:
            continue
        total += timing.seconds
        told = "reused" if timing.reused else duration(timing.seconds)
        lines.append([text(stage), told])
    if not lines:
        return paragraph("No stage's time was recorded.", "hint")
    lines.append(["<b>all, in this run</b>", f"<b>{duration(total)}</b>"])
    return f"<div>{table(['stage', 'wall time'], lines, numbers_from=1)}</div>"


def _device(run: ReportedRun, training: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    lines: list[list[str]] = []
    reused = (timing := run.outcome.stages.get("training")) is not None and timing.reused
    if seconds := training.get("seconds"):
        device = str(training.get("device") or "")
        unit, hours = device_hours(seconds, device, run.training_processes)
        when = " (in the run that trained it)" if reused else ""
        spread = f" × {run.training_processes}" if run.training_processes > 1 else ""
        lines += [
            ["training ran on", f"{text(device)}{spread}"],
            [f"training, {unit}{when}", _hours(hours)],
            ["training, tokens/s", number(round(training.get("tokens_per_second") or 0))],
            ["tokens read", number(training.get("tokens"))],
        ]
        if memory := training.get("peak_memory_bytes"):
            lines.append(["peak memory", f"{memory / 1e9:.2f} GB"])
        if (step := training.get("resumed_from_step")) is not None:
            lines.append(["counted from step", number(step)])
    answers = evaluation.get("answers") or {}
    kept = answers.get("reused") or ()
    if spent := sum(s for model, s in (answers.get("seconds") or {}).items() if model not in kept):
        unit, hours = device_hours(spent, str(answers.get("device") or ""))
        lines.append([f"evaluation, {unit}", _hours(hours)])
    return f"<div>{table(['device', ''], lines, numbers_from=1)}</div>" if lines else ""


def _answering(evaluation: Mapping[str, Any]) -> str:
    answers = evaluation.get("answers") or {}
    seconds: Mapping[str, float] = answers.get("seconds") or {}
    generated: Mapping[str, int] = answers.get("generated_tokens") or {}
    lines = []
    for model in MODELS:
        if model not in seconds:
            continue
        spent, tokens = seconds[model], generated.get(model)
        speed = MISSING
        told = duration(spent)
        if model in (answers.get("reused") or ()):
            told = "reused"
        elif tokens and spent > 0:
            speed = number(round(tokens / spent))
        lines.append([NAMES[model], told, number(tokens), speed])
    if not lines:
        return ""
    head = ["answering", "wall time", "tokens written", "tokens/s, loss included"]
    return table(head, lines, numbers_from=1)


def _hours(hours: float) -> str:
    return f"{hours:.4f}" if hours < 0.1 else f"{hours:,.2f}"
