"""The gate's verdict as a table: for Markdown pages and for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.markdown import cell, table

HEAD = ("gate rule", "verdict", "rows", "adapter", "reference", "gain", "interval")
SLICES_SHOWN = 12
WHY_CHARACTERS = 600


@dataclass(frozen=True)
class Line:
    """One line of the table, in plain text."""

    rule: str
    rows: str
    adapter: str
    reference: str
    gain: str
    interval: str
    passed: bool | None
    """None for a slice that was not judged."""
    why: str

    @property
    def verdict(self) -> str:
        """The word for `passed`."""
        return {True: "passed", False: "failed", None: "not judged"}[self.passed]


def gate_lines(gate: Mapping[str, Any]) -> list[Line]:
    """A line for each rule of `gate` (`gate.judge`'s verdict) and for its slices below it.

    Failed slices come first; beyond `SLICES_SHOWN` the others are counted. Entries with few fields,
    as older reports have them, give lines with few cells.
    """
    lines = []
    for entry in gate.get("rules", ()):
        name = str(entry.get("rule") or _old_rule(entry))
        # A rule on slices has the numbers of its worst one, which stands below with the others.
        own = {"passed": entry.get("passed")} if entry.get("slices") else entry
        lines.append(_line(name, own, str(entry.get("why", ""))))
        slices = sorted(
            entry.get("slices", ()), key=lambda one: (one["passed"], one.get("gain", 0.0))
        )
        lines += [_line(f"  {one['slice']}", one, "") for one in slices[:SLICES_SHOWN]]
        if len(slices) > SLICES_SHOWN:
            rest = slices[SLICES_SHOWN:]
            failed = sum(not one["passed"] for one in rest)
            text = f"  {len(rest)} more slices"
            lines.append(Line(text, "", "", "", "", "", not failed, f"{failed} of them failed"))
        lines += [
            Line(f"  {name}", str(rows), "", "", "", "", None, "too few rows")
            for name, rows in list(entry.get("not_judged", {}).items())[:SLICES_SHOWN]
        ]
    return lines


def gate_markdown(gate: Mapping[str, Any]) -> str:
    """The verdict as a Markdown table, and below it why: sentences would push the verdict off the page."""
    rows: list[Sequence[str]] = []
    reasons = []
    for line in gate_lines(gate):
        inner = line.rule.startswith("  ")
        rule = cell(line.rule, 200)
        verdict = f"**{line.verdict}**" if line.passed is False else line.verdict
        numbers = (line.rows, line.adapter, line.reference, line.gain, line.interval)
        # The verdict first: the last columns lie outside a narrow page.
        rows.append([f"↳ {rule}" if inner else rule, verdict, *numbers])
        if line.why:
            reasons.append(f"- {rule}: {cell(line.why, WHY_CHARACTERS)}")
    return "\n\n".join([table(HEAD, rows), *(["\n".join(reasons)] * bool(reasons))])


def _line(name: str, entry: Mapping[str, Any], why: str) -> Line:
    reference = _number(entry.get("reference"))
    if reference and "judged_against" in entry:
        reference += f" ({entry['judged_against']})"
    interval = ""
    if entry.get("low") is not None and entry.get("high") is not None:
        interval = f"{_signed(entry['low'])} to {_signed(entry['high'])}"
    return Line(
        rule=name,
        rows=str(entry.get("rows", "")),
        adapter=_number(entry.get("value")),
        reference=reference,
        gain=_signed(entry.get("gain")),
        interval=interval,
        passed=bool(entry.get("passed")),
        why=why,
    )


def _old_rule(entry: Mapping[str, Any]) -> str:
    return str(entry.get("metric", ""))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}" if abs(value) < 1000 else f"{value:+.4g}"
