"""Mistakes in a recipe's gate rules that can be told before anything runs."""

from collections.abc import Collection, Sequence
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from tasks.evaluation.gate_settings import CUSTOM, GateRule
from tasks.suggest import did_you_mean


def check_rules(
    rules: Sequence[GateRule],
    *,
    metrics: Collection[str],
    without_direction: Collection[str],
    shares: Collection[str],
    suites: Collection[str] | None = None,
    slices: Collection[str] | None = None,
) -> None:
    """Refuse rules that no adapter can pass or that name what is not measured, all at once.

    `shares` are the metrics that lie between 0 and 1. `suites` and `slices` (columns) are those that the recipe measures; None leaves them unchecked.
    Raises: ValidationError with each mistake at `gate.<number>.<field>`.
    """
    mistakes: list[tuple[tuple[str | int, ...], str]] = []
    for number, rule in enumerate(rules):
        mistakes += [
            (("gate", number, field), text)
            for field, text in (
                ("metric", _metric_mistake(rule, metrics, without_direction)),
                ("suite", _suite_mistake(rule, suites)),
                ("slice", _slice_mistake(rule, slices)),
            )
            if text
        ]
        mistakes += [(("gate", number, field), text) for field, text in _unreachable(rule, shares)]
        for earlier, other in enumerate(rules[:number]):
            if text := _clash(other, rule):
                mistakes.append((("gate", number), text.format(earlier=f"gate.{earlier}")))
    if not mistakes:
        return
    raise ValidationError.from_exception_data(
        "EvaluationSettings",
        [
            InitErrorDetails(
                type=PydanticCustomError("field", "{what}", {"what": text}), loc=place, input=None
            )
            for place, text in mistakes
        ],
    )


def _metric_mistake(
    rule: GateRule, metrics: Collection[str], without_direction: Collection[str]
) -> str:
    if rule.metric is None:
        return ""
    if rule.metric.startswith(CUSTOM) and rule.metric.removeprefix(CUSTOM).isidentifier():
        return ""
    if rule.metric not in metrics:
        hint = did_you_mean(rule.metric, metrics)
        hint = hint if hint.startswith("Did") else ""
        return f"must be one of {', '.join(metrics)}, not '{rule.metric}'. {hint}".rstrip()
    if rule.compares and rule.metric in without_direction:
        return (
            f"`{rule.metric}` has no better direction, so nothing can be gained or dropped in it; bound "
            "it with `min` and/or `max`"
        )
    return ""


def _suite_mistake(rule: GateRule, suites: Collection[str] | None) -> str:
    if rule.suite is None or suites is None or rule.suite in suites:
        return ""
    return f"the recipe measures no suite `{rule.suite}`. " + (
        did_you_mean(rule.suite, suites) or "`evaluation.retention` would measure `retention`"
    )


def _slice_mistake(rule: GateRule, slices: Collection[str] | None) -> str:
    if rule.slice is None or slices is None:
        return ""
    column = rule.slice.partition("=")[0]
    if not slices:
        return (
            f"the recipe makes no slices, so none can be judged (`{rule.slice}`): name their columns in "
            "`evaluation.slices`"
        )
    if column == "*" or column in slices:
        return ""
    return f"the recipe makes no slices by `{column}`. {did_you_mean(column, slices)}".rstrip()


def _unreachable(rule: GateRule, shares: Collection[str]) -> list[tuple[str, str]]:
    """Numbers that a value between 0 and 1 always or never keeps, such as a share written in percent."""
    if rule.metric not in shares:
        return []
    found = []
    for field, low, high in (("min", 0, 1), ("max", 0, 1), ("min_gain", -1, 1), ("max_drop", 0, 1)):
        value: Any = getattr(rule, field)
        if value is not None and not low <= value <= high:
            found.append(
                (
                    field,
                    f"`{rule.metric}` lies between 0 and 1, and this is {value:g}"
                    + (f". Did you mean {value / 100:g}?" if 1 < abs(value) <= 100 else ""),
                )
            )
    return found


def _clash(earlier: GateRule, rule: GateRule) -> str:
    if earlier == rule:
        return "says what {earlier} says: delete one"
    if (earlier.metric, earlier.suite, earlier.slice) != (rule.metric, rule.suite, rule.slice):
        return ""
    for low, high in ((earlier, rule), (rule, earlier)):
        if low.min is not None and high.max is not None and low.min > high.max:
            return (
                f"together with {{earlier}} it asks for at least {low.min:g} and at most {high.max:g}: no "
                "adapter could pass"
            )
    return ""
