"""What a person sees when a run has ended: the metric table, the version, what to do next."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.program import program
from tasks.artifacts import Outcome
from tasks.evaluation.gate_table import gate_lines
from tasks.evaluation.settings import LOWER_IS_BETTER, NO_DIRECTION

_HEADLINES = {
    "registered": ("Registered", "bold green"),
    "skipped": ("Nothing to do", "bold green"),
    "awaiting_approval": ("Waiting for approval", "bold yellow"),
    "refused": ("Refused by the gate", "bold red"),
    "failed": ("Failed", "bold red"),
}


def print_summary(outcome: Outcome, console: Console) -> None:
    """Print the outcome, its metrics, and the commands that go on from here."""
    headline, style = _HEADLINES[outcome.outcome]
    console.print()
    console.print(Text.assemble((headline, style), ": ", outcome.reason), soft_wrap=True)
    if any(outcome.metrics.values()):
        console.print()
        console.print(metric_table(outcome))
    if outcome.gate is not None:
        _print_gate(outcome.gate, console)
    facts = _facts(outcome)
    if facts:
        console.print()
        width = max(len(name) for name, _ in facts)
        for name, value in facts:
            # Never wrapped: paths and ids are copied from here.
            console.print(Text.assemble((name.ljust(width + 2), "dim"), value), soft_wrap=True)
    commands = next_commands(outcome)
    if commands:
        console.print("\nNext:", style="bold")
        for command in commands:
            console.print(Text(f"  {command}"), soft_wrap=True)


def metric_table(outcome: Outcome) -> Table:
    """Metrics of base, champion and adapter, with the differences and their 95 % intervals."""
    models = [m for m in ("base", "champion", "challenger") if outcome.metrics.get(m)]
    against = [m for m in ("base", "champion") if outcome.differences.get(m)]
    table = Table(title="Test rows", title_justify="left", title_style="bold")
    table.add_column("metric")
    for model in models:
        table.add_column("adapter" if model == "challenger" else model, justify="right")
    for model in against:
        table.add_column(f"adapter minus {model} [95 %]", justify="right")
    names = list(outcome.metrics.get("challenger") or outcome.metrics.get("base") or {})
    for name in names:
        row: list[str | Text] = [name]
        row += [number((outcome.metrics[m] or {}).get(name)) for m in models]
        row += [_difference(name, (outcome.differences[m] or {}).get(name)) for m in against]
        table.add_row(*row)
    return table


def next_commands(outcome: Outcome) -> list[str]:
    """Commands worth typing now."""
    version = outcome.model_version
    if version is None:
        return []
    name = version.get("name")
    aliases = version.get("aliases")
    alias = "champion" if isinstance(aliases, list) and "champion" in aliases else None
    uri = f"models:/{name}@{alias}" if alias else str(version.get("uri"))
    call = program()
    return [
        f"{call} versions {name}",
        f'{call} predict {uri} --prompt "..."',
        f"{call} ui    # this folder's Prefect and MLflow in the browser",
    ]


def number(value: object) -> str:
    """Three decimals below 10, fewer above; `-` for nothing."""
    if not isinstance(value, int | float):
        return "-"
    if abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def _difference(metric: str, entry: dict[str, float] | None) -> Text:
    if not entry:
        return Text("-")
    mean, low, high = (entry.get(key, float("nan")) for key in ("mean", "low", "high"))
    text = f"{_signed(mean)} [{_signed(low)}, {_signed(high)}]"
    better = -1 if metric in LOWER_IS_BETTER else 0 if metric in NO_DIRECTION else 1
    # Coloured only where the interval excludes zero: the rest may be chance.
    if better * low > 0 and better * high > 0:
        return Text(text, style="green")
    if better * low < 0 and better * high < 0:
        return Text(text, style="red")
    return Text(text)


def _signed(value: float) -> str:
    text = number(value)
    return text if text.startswith("-") else f"+{text}"


def _print_gate(gate: dict[str, object], console: Console) -> None:
    console.print()
    if gate.get("passed"):
        console.print(Text("Gate: passed", style="green"))
    else:
        console.print(Text("Gate: refused", style="red"))
    lines = gate_lines(gate)
    table = Table("", "rule", "rows", "adapter", "reference", "gain", "interval")
    for line in lines:
        mark = {True: "✓", False: "✗", None: "-"}[line.passed]
        table.add_row(
            *(mark, line.rule, line.rows, line.adapter, line.reference, line.gain, line.interval),
            style="red" if line.passed is False else "",
        )
    console.print(table)
    for line in lines:
        if line.passed is False and line.why:
            console.print(Text(f"  ✗ {line.rule}: {line.why}", style="red"), soft_wrap=True)


def _facts(outcome: Outcome) -> list[tuple[str, str]]:
    facts = []
    if (version := outcome.model_version) is not None:
        aliases = version.get("aliases")
        marks = ", ".join(map(str, aliases)) if isinstance(aliases, list) and aliases else "none"
        facts.append(
            ("version", f"{version.get('name')} {version.get('version')} (aliases: {marks})")
        )
    if outcome.started_from:
        facts.append(("started from", str(outcome.started_from["uri"])))
    if outcome.trainable_parameters:
        facts.append(("trained", f"{outcome.trainable_parameters:,} parameters"))
    if outcome.report:
        facts.append(("report", outcome.report))
    if outcome.mlflow_run_id:
        facts.append(("MLflow run", outcome.mlflow_run_id))
    if outcome.prefect_flow_run_id:
        facts.append(("Prefect run", outcome.prefect_flow_run_id))
    return facts
