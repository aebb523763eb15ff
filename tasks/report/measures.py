"""How a difference between two models is to be read: which way is better, and whether it may be chance."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

Word = Literal["better", "worse", "unclear", ""]
NAMES = {"base": "base", "champion": "champion", "challenger": "adapter"}
MODELS = ("base", "champion", "challenger")
MAIN = ("rougeL", "loss", "exact_match", "accuracy", "chrf", "stop_rate")
"""What a person asks for first, where no rule of the gate says what matters here."""


def models_of(metrics: Mapping[str, Any]) -> list[str]:
    """The models that were measured, in the order of the columns."""
    return [model for model in MODELS if metrics.get(model)]


def rival_of(evaluation: Mapping[str, Any]) -> str:
    """Whom the adapter would replace: the champion where one was measured, else the base."""
    return "champion" if (evaluation.get("metrics") or {}).get("champion") else "base"


def direction(evaluation: Mapping[str, Any], metric: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither is or nobody said."""
    return int((evaluation.get("directions") or {}).get(metric, 0))


def word(evaluation: Mapping[str, Any], metric: str, difference: Mapping[str, float]) -> Word:
    """What the 95 % interval of a difference says; nothing for a metric without a direction."""
    way = direction(evaluation, metric)
    if way == 0:
        return ""
    low, high = difference["low"], difference["high"]
    if low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) == (way > 0) else "worse"


def split_by_word(
    evaluation: Mapping[str, Any], differences: Mapping[str, Mapping[str, float]]
) -> dict[Word, list[str]]:
    """Metrics by what is said of them, those that matter most first."""
    found: dict[Word, list[str]] = {"better": [], "worse": [], "unclear": [], "": []}
    for metric in ordered(evaluation, differences):
        found[word(evaluation, metric, differences[metric])].append(metric)
    return found


def ordered(evaluation: Mapping[str, Any], metrics: Iterable[str]) -> list[str]:
    """Metrics of the gate first, then the usual ones, then the rest as measured."""
    there = list(dict.fromkeys(metrics))
    rules: Sequence[Mapping[str, Any]] = (evaluation.get("gate") or {}).get("rules") or ()
    first = [str(rule.get("metric")) for rule in rules]
    return list(dict.fromkeys(name for name in (*first, *MAIN, *there) if name in there))
