"""Ask one metric module for its numbers, and hold it to what every module promises: a score for each row."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.errors import UserError
from tasks.evaluation.aggregates import Array
from tasks.evaluation.catalog import MetricModule

CLOSE = 1e-6


@dataclass(frozen=True)
class Found:
    """What a module made of one model's answers."""

    values: dict[str, float]
    rows: dict[str, list[float | None]]
    """Metric -> its score of each row; also of what is kept beside a metric, such as its precision."""
    statistics: dict[str, Array]
    """Metric -> shape (rows, k), see `aggregates`."""
    notes: list[str]


def compute(module: MetricModule, loaded: Any, count: int, inputs: Mapping[str, Any]) -> Found:
    """The module's numbers of `count` rows.

    Raises: UserError when a module of the user's own fails or has no score for a row; AssertionError
    when one of ours does.
    """
    if module.is_custom:
        return _custom(module, loaded, count, inputs)
    try:
        result: dict[str, Any] = loaded.compute(**inputs)
    except ValueError as error:
        raise UserError(f"{module.name}: {error}.") from error
    for name, scores in result["rows"].items():
        # A scorer that drops empty answers would inflate the mean of the others.
        if len(scores) != count or len(result["statistics"].get(name, scores)) != count:
            raise AssertionError(f"{name}: {len(scores)} of {count} rows scored")
    return Found(
        values={name: float(result[name]) for name in result["statistics"]},
        rows=result["rows"],
        statistics={
            name: np.asarray(rows, dtype=np.float64) for name, rows in result["statistics"].items()
        },
        notes=result.get("notes", []),
    )


def _custom(module: MetricModule, loaded: Any, count: int, inputs: Mapping[str, Any]) -> Found:
    """One number a row, and their mean. A module that gives its total alone is asked row by row."""
    try:
        result = loaded.compute(**inputs)
        name = module.source.stem
        total = _total(result, name)
        rows = (result.get("rows") or {}).get(name)
        if rows is None:
            texts = zip(inputs["predictions"], inputs["references"], strict=True)
            rows = [
                _total(loaded.compute(predictions=[mine], references=[theirs]), name)
                for mine, theirs in texts
            ]
        # None says nothing of a row, as NaN does: `_problem` tells of both.
        scores = [math.nan if score is None else float(score) for score in rows]
    except Exception as error:
        raise UserError(
            f"The metric module {module.source} fails: {type(error).__name__}: {error}. Correct it, or "
            "take it out of evaluation.metrics_folder."
        ) from error
    problem = _problem(scores, count, total, inputs["predictions"])
    if problem:
        raise UserError(
            f"The metric {module.name} ({module.source}) {problem}. Let it return {{{name!r}: the mean, "
            f"'rows': {{{name!r}: [one number a row]}}}}, with the worst score where an answer is empty or "
            "of no use, or take it out of evaluation.metrics_folder."
        )
    direction = getattr(loaded, "direction", "higher")
    if direction not in ("higher", "lower", "none"):
        raise UserError(
            f"The metric module {module.source} has the direction {direction!r}. Its class may say "
            "direction = 'higher', 'lower' or 'none' (which of two values is the better one)."
        )
    statistics = np.array([[score, 1.0] for score in scores])
    return Found({module.name: total}, {module.name: list(scores)}, {module.name: statistics}, [])


def _total(result: Mapping[str, Any], name: str) -> float:
    if name in result:
        return float(result[name])
    numbers = [v for v in result.values() if isinstance(v, int | float | np.number)]
    if len(numbers) != 1:
        raise KeyError(f"its result has no {name!r}, but {', '.join(map(repr, result))}")
    return float(numbers[0])


def _problem(scores: Sequence[float], count: int, total: float, answers: Sequence[str]) -> str:
    if len(scores) != count:
        return f"scored {len(scores)} of {count} rows"
    bad = [row for row, score in enumerate(scores) if not math.isfinite(score)]
    if bad:
        # A row that is left out is one that the adapter cannot fail on: silence would pass every rule.
        what = "not empty" if answers[bad[0]].strip() else "empty"
        return (
            f"gives no finite number for {len(bad)} of {count} rows, the first of them row {bad[0] + 1} in "
            f"the order of the predictions, whose answer is {what}"
        )
    mean = sum(scores) / count
    if not math.isclose(mean, total, rel_tol=CLOSE, abs_tol=CLOSE):
        return (
            f"says {total:.6g} for all rows, but the mean of its rows is {mean:.6g}, so that no interval "
            "can be given"
        )
    return ""
