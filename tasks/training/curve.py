"""The loss curve: its points as JSON lines, and their picture."""

import json
from pathlib import Path
from typing import Any


def write_history(history: list[dict[str, Any]], folder: Path) -> None:
    """`history.jsonl` and `loss.png` of the trainer's log entries that tell a loss."""
    entries = [entry for entry in history if "loss" in entry or "eval_loss" in entry]
    lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in entries)
    (folder / "history.jsonl").write_text(lines, encoding="utf-8")
    draw_loss(entries, folder / "loss.png")


def draw_loss(history: list[dict[str, Any]], path: Path) -> None:
    """A PNG of at most about 30 kB: training loss over optimizer steps, evaluation loss if there is one.

    `history` holds the trainer's log entries, with `step` and `loss` or `eval_loss`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.0), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(h["step"], h[key]) for h in history if key in h]
        if points:
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, label=label, marker="." if len(points) < 40 else None)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per answer token)")
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1:
        axes.legend(frameon=False)
    figure.savefig(path)
