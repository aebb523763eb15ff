"""What a person reads about a version: its description in the registry, and the run's summary."""

from collections.abc import Mapping

from tasks.artifacts import Report, Version
from tasks.registration.job import Verification
from tasks.registration.provenance import Provenance

SHOWN_METRICS = ("loss", "rougeL", "chrf", "exact_match", "stop_rate")


def description(made: Provenance, *, name: str, purpose: str | None) -> str:
    """The version's description in the registry, in markdown."""
    base, tokens, adapter = made.base, made.tokens, made.adapter
    commit = f" at commit `{base.commit}`" if base.commit else ""
    parts = [
        purpose or _headline(made, name),
        f"It belongs on `{base.shown}`{commit} (sha256 `{base.weights_sha256[:12]}`), which is not part "
        f"of this version, and has {adapter.trainable_parameters:,} parameters of its own.",
        *(
            [f"Its training went on with the adapter of {made.started_from}."]
            * bool(made.started_from)
        ),
        f"Trained on {tokens.rows['train']:,} conversations ({tokens.trained_tokens['train']:,} tokens with "
        f"loss), evaluated on {tokens.rows['test']:,} others; dataset digest `{made.dataset.digest[:12]}`.",
        metrics_table(made.report),
        gate_line(made.report),
        loading(f"models:/{name}@champion"),
        *([f"Made by this [flow run in Prefect]({made.prefect_url})."] * bool(made.prefect_url)),
    ]
    return "\n\n".join(parts)


def model_description(name: str, purpose: str | None) -> str:
    """The registered model's own description, in markdown: what its aliases mean, and where its log is."""
    return "\n\n".join(
        [
            purpose or f"LoRA adapters of the recipe {name}.",
            f"`models:/{name}@champion` is what users load. `previous` is the champion before, `challenger` the "
            "newest version that its gate let pass.",
            f"Who moved the champion, when and why: the experiment `{name}/promotions`, which "
            f"`loraline audit {name}` verifies.",
        ]
    )


def summary(
    version: Version,
    *,
    run_url: str,
    version_url: str,
    description: str,
    verification: Verification | None,
    notes: Mapping[str, str],
) -> str:
    """The text of the Prefect artifact: which version this is, where to see it, how to load it."""
    aliases = ", ".join(f"`{alias}`" for alias in version.aliases) or "none"
    lines = [
        f"# {version.name}, version {version.version}",
        "",
        f"Aliases when it was registered: {aliases}. [Version in MLflow]({version_url}) · [MLflow run]({run_url})",
        "",
        *(f"- {name}: {text}" for name, text in notes.items()),
    ]
    if verification is not None:
        lines.append(
            f"- Reloaded in a fresh process: logits differ by at most {verification.largest_difference:.2g} "
            f"from the trained adapter's at {verification.positions} positions ({verification.dtype}); "
            f"the adapter itself changes them by up to {verification.adapter_effect:.2g}."
        )
    return "\n".join([*lines, "", description, ""])


def _headline(made: Provenance, name: str) -> str:
    """The first line: a list of versions shows it alone, and as plain text."""
    mine = made.report.metrics.get("challenger") or {}
    base = made.report.metrics.get("base") or {}
    parts = [f"{made.tokens.rows['train']:,} conversations"]
    if "loss" in mine and "loss" in base:
        parts.append(f"loss {mine['loss']:.3f} (base {base['loss']:.3f})")
    return f"LoRA adapter {name}: {', '.join(parts)}."


def metrics_table(report: Report) -> str:
    """Base, champion and this adapter side by side, with the difference to the base."""
    columns = [name for name in ("base", "champion") if report.metrics.get(name)]
    mine = report.metrics.get("challenger") or {}
    differences = report.differences.get("base") or {}
    rows = [
        # MLflow's page puts no space between columns.
        f"| metric&ensp; | {' | '.join(f'&ensp;{name}&ensp;' for name in columns)} | &ensp;this adapter&ensp; | "
        "&ensp;difference to base (95 % interval) |",
        f"|---|{'---:|' * len(columns)}---:|---:|",
    ]
    for metric in SHOWN_METRICS:
        if metric not in mine:
            continue
        others = [
            f"{(report.metrics[name] or {}).get(metric, float('nan')):.3f}" for name in columns
        ]
        gain = differences.get(metric)
        shown = f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})" if gain else ""
        rows.append(f"| {metric} | {' | '.join(others)} | {mine[metric]:.3f} | {shown} |")
    return "\n".join(rows)


def gate_line(report: Report) -> str:
    """Whether the gate let it pass."""
    if report.gate is None:
        return "Gate: the recipe has none."
    return "Gate: passed." if report.gate.get("passed") else "Gate: **refused**; see the report."


def loading(uri: str) -> str:
    """The lines that load a version and ask it something."""
    return (
        "```python\n"
        "import mlflow\n\n"
        f'model = mlflow.pyfunc.load_model("{uri}")\n'
        'model.predict({"messages": [{"role": "user", "content": "..."}]})\n'
        "```\n"
        'The base is looked for where the recipe names it; `model_config={"base": "/path/to/base"}` or '
        "`LORALINE_BASE` names another place. On the command line: "
        f"`loraline predict {uri} --prompt '...'`."
    )
