"""The gate's verdict: every rule with its numbers, its interval, and why it passed or failed."""

from collections.abc import Mapping
from typing import Any

from tasks.evaluation.gate_table import gate_lines
from tasks.report.markup import paragraph, section, text

_HEAD = ("rule", "verdict", "rows", "adapter", "reference", "gain", "interval", "why")


def gate_section(gate: Mapping[str, Any] | None) -> str:
    """The table; a sentence when the recipe has no gate."""
    if gate is None:
        told = (
            "The recipe has no gate: every trained adapter may be promoted, also one that is worse."
        )
        return section("gate", "Gate", paragraph(told, "warn"))
    head = "".join(f'<th scope="col">{name}</th>' for name in _HEAD)
    lines = []
    for line in gate_lines(gate):
        inner = line.rule.startswith("  ")
        state = {True: "pass", False: "fail", None: "open"}[line.passed]
        mark = {True: "✓", False: "✗", None: "·"}[line.passed]
        numbers = (line.rows, line.adapter, line.reference, line.gain, line.interval)
        cells = "".join(f'<td class="n">{text(cell.replace("-", "−"))}</td>' for cell in numbers)
        lines.append(
            f'<tr class="{state}{" inner" if inner else ""}"><th scope="row">{text(line.rule.strip())}</th>'
            f'<td class="state">{mark} {line.verdict}</td>{cells}<td class="why">{text(line.why)}</td></tr>\n'
        )
    told = "Every rule must hold. A gain is always in the better direction: a falling loss is a positive gain."
    return section(
        "gate",
        "Gate",
        paragraph(told, "hint"),
        f'<div class="scroll" tabindex="0"><table class="gate"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{''.join(lines)}</tbody></table></div>",
    )
