"""Curves of a training as inline SVG: loss and learning rate over optimizer steps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.report.markup import paragraph, section, text

Point = tuple[float, float]
WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 14, 34
DRAWN_POINTS = 600
"""Of a curve: more than a screen has columns are drawn as the least and the greatest of each column."""
MARKED_POINTS = 40
"""Fewer points than this are also shown as dots, so that a single one is seen."""


def curves_section(history: Sequence[Mapping[str, Any]]) -> str:
    """Both charts; a sentence when nothing was recorded."""
    losses = {
        "training": _points(history, "loss"),
        "evaluation": _points(history, "eval_loss"),
    }
    losses = {name: points for name, points in losses.items() if points}
    rates = _points(history, "learning_rate")
    if not losses and not rates:
        return section("curves", "Loss and learning rate", paragraph("No step was recorded."))
    charts = []
    if losses:
        charts.append(chart("Loss", losses))
    if rates:
        charts.append(chart("Learning rate", {"learning rate": rates}))
    left_out = sum(_is_not_finite(entry.get("loss")) for entry in history)
    hint = (
        paragraph(f"{left_out} recorded losses are no finite numbers and are not drawn.", "warn")
        if left_out
        else ""
    )
    return section(
        "curves", "Loss and learning rate", f'<div class="charts">{"".join(charts)}</div>', hint
    )


def chart(title: str, curves: Mapping[str, Sequence[Point]]) -> str:
    """One chart over optimizer steps; `curves` holds at least one point."""
    every = [point for points in curves.values() for point in points]
    across = _axis([x for x, _ in every], whole=True)
    up = _axis([y for _, y in every])

    def place(point: Point) -> tuple[float, float]:
        x = LEFT + (point[0] - across[0]) / (across[-1] - across[0]) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - up[0]) / (up[-1] - up[0]) * (HEIGHT - TOP - BOTTOM)
        return x, y

    parts = []
    for tick in up:
        y = place((across[0], tick))[1]
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(tick, up)}</text>'
        )
    for tick in across:
        x = place((tick, up[0]))[0]
        anchor = "end" if tick == across[-1] else "middle"
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="{anchor}">{_tick(tick, across)}</text>'
        )
    parts.append(
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">'
        "optimizer step</text>"
    )
    for index, points in enumerate(curves.values()):
        placed = [place(point) for point in _thinned(points)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="curve c{index}" points="{line}"/>')
        if len(points) < MARKED_POINTS:
            parts += [
                f'<circle class="dot c{index}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>'
                f"step {step:g}: {value:.4g}</title></circle>"
                for (x, y), (step, value) in zip(placed, points, strict=True)
            ]
    told = "; ".join(
        f"{name} from {points[0][1]:.4g} at step {points[0][0]:g} to {points[-1][1]:.4g} at step "
        f"{points[-1][0]:g}"
        for name, points in curves.items()
    )
    legend = ""
    if len(curves) > 1:
        legend = " ".join(
            f'<span class="key"><i class="c{index}"></i>{text(name)}</span>'
            for index, name in enumerate(curves)
        )
    return (
        f"<figure><figcaption><strong>{text(title)}</strong> {legend}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}: {text(told)}">'
        f'{"".join(parts)}</svg><p class="hint">{text(told)}</p></figure>'
    )


def _points(history: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    found: dict[float, float] = {}
    for entry in history:
        step, value = entry.get("step"), entry.get(key)
        if _is_number(step) and _is_number(value):
            # A step that was repeated after a resume counts as it went in the end.
            found[float(step)] = float(value)  # type: ignore[arg-type]
    return sorted(found.items())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """Few enough points that no peak is lost: the least and the greatest of each stretch."""
    if len(points) <= DRAWN_POINTS:
        return points
    size = math.ceil(len(points) / (DRAWN_POINTS // 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def _axis(values: Sequence[float], *, whole: bool = False) -> list[float]:
    """Four to eight round ticks that hold all values; never one alone."""
    low, high = min(values), max(values)
    if low == high:
        room = 1.0 if whole else abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def _tick(value: float, axis: Sequence[float]) -> str:
    """All ticks of an axis in one notation."""
    largest = max(map(abs, axis))
    if value and not 0.001 <= largest < 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').removesuffix('.')}e{int(exponent)}".replace("-", "−")
    return f"{value:,.6g}".replace("-", "−")
