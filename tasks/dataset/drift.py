"""How far today's training rows are from those that the champion was trained on."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.markdown import table

ASPECTS = {
    "prompt_lengths": "lengths of the prompts",
    "answer_lengths": "lengths of the answers",
    "turns": "messages in a conversation",
    "slices": "mix of slices",
    "words": "words (a sample)",
}


def drift(
    today: Mapping[str, Any],
    champion: Mapping[str, Any],
    *,
    today_rows: Path,
    champion_rows: Path,
    warn_above: float,
) -> dict[str, Any]:
    """Jensen-Shannon distances of two dataset cards (`card.json`), and the share of new rows.

    A distance is 0 for equal mixes and 1 for mixes that share nothing (base 2, square root:
    Endres and Schindelin, 2003). `warnings` names the aspects above `warn_above`. What the champion's
    card does not hold, because another version of loraline wrote it, has no distance and is in
    `not_compared`. Slices are compared where a source of today names its own: without one, the name of
    the file stands for it, and a file's name may change every month.
    """
    import numpy as np

    histograms = [_histograms(card) for card in (today, champion)]
    compared = [name for name in ASPECTS if name != "slices" or _names_slices(today)]
    distances = {
        name: round(js_distance(*_aligned(*(found[name] for found in histograms))), 4)
        for name in compared
        if all(name in found for found in histograms)
    }
    ids = np.load(today_rows, allow_pickle=False)
    old = np.load(champion_rows, allow_pickle=False)
    known = int(np.isin(ids, old).sum())
    return {
        "distances": distances,
        "rows": {"today": len(ids), "champion": len(old)},
        "new_rows_share": round(1 - known / len(ids), 4),
        "lost_rows_share": round(1 - known / len(old), 4) if len(old) else 0.0,
        "warn_above": warn_above,
        "warnings": [name for name, distance in distances.items() if distance > warn_above],
        "not_compared": [name for name in compared if name not in distances],
    }


def js_distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Jensen-Shannon distance (base 2, 0-1) of two histograms of counts; one may be shorter.

    Two small samples of the same mix differ by chance: by (bins - 1)(1/n + 1/m) / (8 ln 2) on the
    average (Grosse et al., 2002), which is taken off before the root is drawn.
    """
    size = max(len(first), len(second))
    p, q = (_shares(counts, size) for counts in (first, second))
    divergence, bins = 0.0, 0
    for a, b in zip(p, q, strict=True):
        middle = (a + b) / 2
        bins += middle > 0
        divergence += sum(x * math.log2(x / middle) for x in (a, b) if x > 0) / 2
    counts = (sum(first), sum(second))
    if all(counts):
        divergence -= (bins - 1) * sum(1 / n for n in counts) / (8 * math.log(2))
    return math.sqrt(min(1.0, max(0.0, divergence)))


def drift_summary(found: Mapping[str, Any], *, champion: str) -> str:
    """Markdown: the distances in words, for Prefect and MLflow."""
    rows = found["rows"]
    verdict = (
        f"**Above {found['warn_above']:g}: "
        + ", ".join(ASPECTS[name] for name in found["warnings"])
        + ".** Look at the sources before you trust the comparison."
        if found["warnings"]
        else f"No distance is above {found['warn_above']:g}."
        if found["distances"]
        else "Only the rows are compared."
    )
    missing = [ASPECTS[name] for name in found["not_compared"]]
    lines = [
        (ASPECTS[name], f"{value:.3f}" + (" **!**" if name in found["warnings"] else ""))
        for name, value in found["distances"].items()
    ]
    return "\n\n".join(
        [
            "# Drift",
            f"Today's {rows['today']:,} training rows against the {rows['champion']:,} of {champion}: "
            f"{found['new_rows_share']:.1%} of today's are new, {found['lost_rows_share']:.1%} of the "
            "champion's are gone.",
            verdict,
            *(
                [table(("Jensen-Shannon distance (0 equal, 1 nothing in common)", ""), lines)]
                if lines
                else []
            ),
            *(
                [
                    f"Not compared: {', '.join(missing)}. The card of {champion} does not hold them: "
                    "another version of loraline wrote it, or its sources named no slice."
                ]
                if missing
                else []
            ),
            "",
        ]
    )


Histogram = Sequence[float] | Mapping[str, float]


def _histograms(card: Mapping[str, Any]) -> dict[str, Histogram]:
    """Aspect -> counts of the training rows, as far as the card holds them."""
    train = card.get("profiles", {}).get("train", {})
    lengths = train.get("lengths", {})
    found = {
        "prompt_lengths": lengths.get("prompt"),
        "answer_lengths": lengths.get("answer"),
        "turns": train.get("turns"),
        "slices": train.get("slices") if _names_slices(card) else None,
        "words": train.get("words"),
    }
    return {name: histogram for name, histogram in found.items() if histogram is not None}


def _names_slices(card: Mapping[str, Any]) -> bool:
    """Whether a source of the card has a column that its rows are counted by."""
    return any("slice" in source.get("mapping", {}) for source in card.get("sources", ()))


def _aligned(first: Histogram, second: Histogram) -> tuple[Sequence[float], Sequence[float]]:
    """Counts by name as lists of the same names; lists as they are."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        names = sorted({*first, *second})
        return [first.get(name, 0) for name in names], [second.get(name, 0) for name in names]
    if isinstance(first, Mapping) or isinstance(second, Mapping):
        raise TypeError("a histogram by name cannot be compared with a list")
    return first, second


def _shares(counts: Sequence[float], size: int) -> list[float]:
    total = sum(counts) or 1
    return [count / total for count in counts] + [0.0] * (size - len(counts))
