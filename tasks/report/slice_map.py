"""The slice heat map: where the adapter gained and where it lost, metric by slice."""

from collections.abc import Mapping
from typing import Any

from tasks.report.markup import MISSING, number, paragraph, section, signed, text
from tasks.report.measures import NAMES, direction, ordered, rival_of, word

LABEL_CHARACTERS = 48
"""Of a slice's name; a longer one loses its middle, for paths differ at their ends."""
FEW_ROWS = 30
"""Slices below it are marked: the gate does not judge them by default either."""


def slices_section(evaluation: Mapping[str, Any]) -> str:
    """The map; a sentence when the recipe asks for no slices."""
    slices = {name: labels for name, labels in (evaluation.get("slices") or {}).items() if labels}
    if not slices:
        told = (
            "The recipe names none. With <code>evaluation.slices: [length, source]</code> this part shows "
            "where the adapter gains and where it loses."
        )
        return section("slices", "Slices", paragraph(told, "hint"))
    rival = rival_of(evaluation)
    whole: Mapping[str, Any] = (evaluation.get("differences") or {}).get(rival) or {}
    every = [
        metric
        for labels in slices.values()
        for one in labels.values()
        for metric in (one.get("differences") or {}).get(rival) or ()
    ]
    metrics = [name for name in ordered(evaluation, every) if direction(evaluation, name)]
    reach = {name: _reach(slices, rival, name) for name in metrics}
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in metrics)
    lines = [_line(evaluation, "all rows", evaluation.get("rows"), whole, metrics, reach, "whole")]
    for slicing, labels in slices.items():
        columns = len(metrics) + 2
        lines.append(
            f'<tr><th class="slicing" colspan="{columns}" scope="colgroup"><span>by {text(slicing)}</span>'
            "</th></tr>"
        )
        for label, one in sorted(labels.items(), key=lambda item: -int(item[1].get("rows") or 0)):
            differences = (one.get("differences") or {}).get(rival) or {}
            lines.append(_line(evaluation, label, one.get("rows"), differences, metrics, reach))
    told = (
        f"Gain of the adapter over the {NAMES[rival]}, always in the better direction: "
        '<span class="key"><i class="gain"></i>better</span> '
        '<span class="key"><i class="loss"></i>worse</span>. A colour is as strong as the gain is large '
        "for its column. Bold: the 95 % interval excludes zero. Of many cells some are bold by chance."
    )
    return section(
        "slices",
        "Slices",
        paragraph(told, "hint"),
        '<div class="scroll" tabindex="0"><table class="heat"><thead><tr><th scope="col">slice</th>'
        f'<th scope="col">rows</th>{head}</tr></thead>\n<tbody>{"".join(lines)}</tbody></table></div>',
    )


def _line(
    evaluation: Mapping[str, Any],
    label: str,
    rows: object,
    differences: Mapping[str, Mapping[str, float]],
    metrics: list[str],
    reach: Mapping[str, float],
    kind: str = "",
) -> str:
    cells = "".join(
        _cell(evaluation, label, name, differences.get(name), reach[name]) for name in metrics
    )
    few = isinstance(rows, int) and rows < FEW_ROWS
    told = f'<td class="n{" few" if few else ""}">{number(rows)}</td>'
    return f'<tr class="{kind}"><th scope="row">{_label(label)}</th>{told}{cells}</tr>\n'


def _label(label: str) -> str:
    if len(label) <= LABEL_CHARACTERS:
        return text(label)
    half = LABEL_CHARACTERS // 2
    return f'<span title="{text(label)}">{text(label[: half - 1])}…{text(label[-half:])}</span>'


def _cell(
    evaluation: Mapping[str, Any],
    label: str,
    metric: str,
    difference: Mapping[str, float] | None,
    reach: float,
) -> str:
    if not difference:
        return f'<td class="n">{MISSING}</td>'
    gain = difference["mean"] * direction(evaluation, metric)
    strength = min(1.0, abs(gain) / reach) if reach else 0.0
    colour = "0,114,178" if gain > 0 else "213,94,0"
    shade = f' style="background:rgba({colour},{0.08 + 0.47 * strength:.2f})"' if gain else ""
    shown = signed(gain)
    if word(evaluation, metric, difference) in ("better", "worse"):
        shown = f"<b>{shown}</b>"
    ends = sorted(difference[end] * direction(evaluation, metric) for end in ("low", "high"))
    told = f"{metric} on {label}: gain {signed(gain)}, {signed(ends[0])} to {signed(ends[1])}"
    return f'<td class="n"{shade} title="{text(told)}">{shown}</td>'


def _reach(slices: Mapping[str, Mapping[str, Any]], rival: str, metric: str) -> float:
    """The largest gain or loss of the column: its full colour."""
    found = [
        abs(difference["mean"])
        for labels in slices.values()
        for one in labels.values()
        if (difference := ((one.get("differences") or {}).get(rival) or {}).get(metric))
    ]
    return max(found, default=0.0)
