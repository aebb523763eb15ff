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
    Endres and Schindelin, 2003). `warnings` names the aspects above `warn_above`.
    """
    import numpy as np

    now, then = (card["profiles"]["train"] for card in (today, champion))
    pairs = {
        "prompt_lengths": (now["lengths"]["prompt"], then["lengths"]["prompt"]),
        "answer_lengths": (now["lengths"]["answer"], then["lengths"]["answer"]),
        "turns": _aligned(now["turns"], then["turns"]),
        "slices": _aligned(now["slices"], then["slices"]),
        "words": (now["words"], then["words"]),
    }
    distances = {name: round(js_distance(*pair), 4) for name, pair in pairs.items()}
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
    )
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
            table(("Jensen-Shannon distance (0 equal, 1 nothing in common)", ""), lines),
            "",
        ]
    )


def _aligned(first: Mapping[str, int], second: Mapping[str, int]) -> tuple[list[int], list[int]]:
    names = sorted({*first, *second})
    return [first.get(name, 0) for name in names], [second.get(name, 0) for name in names]


def _shares(counts: Sequence[float], size: int) -> list[float]:
    total = sum(counts) or 1
    return [count / total for count in counts] + [0.0] * (size - len(counts))
