"""The numbers that one gate rule is judged by, on all rows or on one slice of them."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from tasks.evaluation.aggregates import Array, value_of
from tasks.evaluation.bootstrap import resampled_sums
from tasks.evaluation.gate_evidence import Reference, RowSet
from tasks.evaluation.gate_settings import CONFIDENCE, GateRule
from tasks.evaluation.paired import gain_of, permutation_p_value
from tasks.evaluation.settings import PREFERENCE_METRICS

NAMES: Mapping[str, str] = {"base": "base", "champion": "champion", "challenger": "adapter"}


@dataclass(frozen=True)
class Numbers:
    """What was measured for a rule on one set of rows."""

    rows: int
    """Rows on which the metric says anything."""
    value: float | None = None
    reference: float | None = None
    gain: float | None = None
    """In the metric's better direction, so that a gain is positive for every metric."""
    low: float | None = None
    high: float | None = None
    differing: int | None = None
    """Rows on which the two models differ in this metric."""
    p: float = 1.0
    """One-sided p-value against the rule's margin; 1 where nothing was tested."""
    problem: str = ""
    """Why there are no numbers; empty if there are."""


class Measured:
    """One set of rows, resampled once for all rules on it."""

    def __init__(self, rows: RowSet, metrics: Collection[str], resamples: int) -> None:
        self.rows = rows
        self._metrics = metrics
        self._resamples = resamples
        self._sums: dict[tuple[str, str], Array] = {}

    def has(self, model: str, metric: str) -> bool:
        """Whether the metric was measured for the model on these rows."""
        return metric in self.rows.statistics.get(model, {})

    def bound(self, metric: str) -> Numbers:
        """The adapter's own value."""
        mine = self._statistics("challenger", metric)
        if mine is None:
            return Numbers(rows=0, problem=_missing("challenger", metric))
        value = float(value_of(metric)(mine.sum(axis=0)))
        if not math.isfinite(value):
            return Numbers(_known(mine), problem=_no_number("challenger", metric, value))
        return Numbers(_known(mine), value=value)

    def comparison(
        self, rule: GateRule, metric: str, against: Reference, direction: int
    ) -> Numbers:
        """The adapter's value, the other's, and what lies between them."""
        mine, theirs = self._statistics("challenger", metric), self._statistics(against, metric)
        for model, found in (("challenger", mine), (against, theirs)):
            if found is None:
                return Numbers(rows=0, problem=_missing(model, metric))
        assert mine is not None
        assert theirs is not None
        assert len(mine) == len(theirs), f"{metric}: {len(mine)} and {len(theirs)} rows"
        rows = min(_known(mine), _known(theirs))
        value, reference = (float(value_of(metric)(one.sum(axis=0))) for one in (mine, theirs))
        for model, number in (("challenger", value), (against, reference)):
            if not math.isfinite(number):
                return Numbers(rows, problem=_no_number(model, metric, number))
        sums = (self._resampled("challenger", metric), self._resampled(against, metric))
        gain = gain_of(mine, theirs, value_of(metric), direction, sums=sums)
        low, high = gain.interval(rule.level or CONFIDENCE)
        if not (math.isfinite(low) and math.isfinite(high)):
            return Numbers(rows, problem=f"no interval could be made for {metric}")
        p = gain.p_value(rule.margin)
        if rule.test == "permutation":
            try:
                p = permutation_p_value(
                    mine,
                    theirs,
                    value_of(metric),
                    direction,
                    margin=rule.margin,
                    permutations=self._resamples,
                )
            except ValueError as error:
                return Numbers(rows, problem=f"{metric} cannot be permuted: {error}")
        return Numbers(
            rows=rows,
            value=value,
            reference=reference,
            gain=gain.observed,
            low=low,
            high=high,
            differing=gain.differing,
            p=p,
        )

    def _statistics(self, model: str, metric: str) -> Array | None:
        return self.rows.statistics.get(model, {}).get(metric)

    def _resampled(self, model: str, metric: str) -> Array:
        if not self._sums:
            # All at once: drawing the rows costs more than summing them.
            self._sums = resampled_sums(
                {
                    (name, one): array
                    for name, metrics in self.rows.statistics.items()
                    for one, array in metrics.items()
                    if one in self._metrics
                },
                self._resamples,
            )
        return self._sums[model, metric]


def parts(rows: RowSet, asked: str) -> Iterator[tuple[str, RowSet]]:
    """The slices that a rule names (`*`, a column, or `column=label`), each with its name."""
    column, equals, label = asked.partition("=")
    for name, labels in rows.slices.items():
        if column not in ("*", name):
            continue
        for found in sorted({one for one in labels if one is not None}):
            if not equals or found == label:
                yield f"{name}={found}", rows.where(name, found)


def _known(statistics: Array) -> int:
    if statistics.shape[1] != 2:
        return len(statistics)
    return int((statistics[:, 1] != 0).sum())


def _missing(model: str, metric: str) -> str:
    hint = "; it is measured where test rows are pairs of answers"
    return f"{metric} was not measured for the {NAMES[model]}, so it is missing" + (
        hint if metric in PREFERENCE_METRICS else ""
    )


def _no_number(model: str, metric: str, value: float) -> str:
    return f"the {NAMES[model]}'s {metric} is no number ({value})"
