"""Metrics whose rows were measured before: where a model was held, or by asking another one."""

from collections.abc import Sequence
from typing import Any


def mean_of_measured(name: str, rows: Sequence[float | None]) -> dict[str, Any]:
    """What a metric module returns for the plain mean of rows; None does not count.

    `{name: mean or NaN, "rows": {name: rows}, "statistics": {name: [[score, 1] or [0, 0], ...]}}`
    """
    statistics = [[0.0, 0.0] if score is None else [score, 1.0] for score in rows]
    counted = sum(weight for _, weight in statistics)
    total = sum(score for score, _ in statistics)
    return {
        name: total / counted if counted else float("nan"),
        "rows": {name: rows},
        "statistics": {name: statistics},
    }
