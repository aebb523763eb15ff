"""Which answers a report shows: best gains, worst regressions, and some at random."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

SCORE = "rougeL"


@dataclass(frozen=True)
class Sample:
    """One test row and what each model made of it."""

    kind: Literal["gain", "regression", "random"]
    id: str
    prompt: str
    reference: str
    answers: dict[str, str]
    """Model -> answer."""
    scores: dict[str, float]
    """Model -> the row's ROUGE-L."""


def choose(predictions: Path, scores: Path, models: Sequence[str], count: int) -> list[Sample]:
    """`count` rows (or all, if fewer): a third where the challenger gained most on the base in
    ROUGE-L, a third where it lost most, the rest by the hash of their id."""
    if count == 0:
        return []
    rows: list[dict[str, Any]] = pq.read_table(predictions).to_pylist()
    marks: list[dict[str, Any]] = pq.read_table(
        scores, columns=[f"{model}_{SCORE}" for model in models]
    ).to_pylist()
    gains = [mark[f"challenger_{SCORE}"] - mark[f"base_{SCORE}"] for mark in marks]
    ranked = sorted(range(len(rows)), key=lambda row: (-gains[row], rows[row]["id"]))
    third = count // 3
    best = [row for row in ranked[:third] if gains[row] > 0]
    worst = [row for row in reversed(ranked[-third:] if third else []) if gains[row] < 0]
    worst = [row for row in worst if row not in best]
    taken = {*best, *worst}
    others = sorted(
        (row for row in ranked if row not in taken), key=lambda row: _lot(rows[row]["id"])
    )
    chosen: list[tuple[Literal["gain", "regression", "random"], int]] = [
        *(("gain", row) for row in best),
        *(("regression", row) for row in worst),
        *(("random", row) for row in others[: count - len(taken)]),
    ]
    return [
        Sample(
            kind=kind,
            id=rows[row]["id"],
            prompt=rows[row]["prompt"],
            reference=rows[row]["reference"],
            answers={model: rows[row][f"{model}_answer"] for model in models},
            scores={model: marks[row][f"{model}_{SCORE}"] for model in models},
        )
        for kind, row in chosen
    ]


def _lot(row_id: str) -> str:
    # Not the id itself: ids may be sorted by source, and the first ones are no fair sample.
    return hashlib.sha256(row_id.encode()).hexdigest()
