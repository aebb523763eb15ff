"""Which answers a report shows: where the adapter gained most, where it lost most, and some at random."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SCORE = "rougeL"
SEED = "loraline"
"""Part of every lot. The same rows come back night after night as long as they are in the test set."""
Kind = Literal["gain", "regression", "random"]


@dataclass(frozen=True)
class Sample:
    """One test row and what each model made of it."""

    kind: Kind
    id: str
    prompt: str
    reference: str
    label: str | None
    answers: dict[str, str]
    """Model -> answer."""
    scores: dict[str, float | None]
    """Model -> the row's ROUGE-L."""
    gain: float | None
    """The challenger's score less the rival's."""


def choose(
    folder: Path, models: Sequence[str], rival: str, number: int, seed: str = SEED
) -> list[Sample]:
    """At most `number` rows of `folder/predictions.parquet`: a third where `challenger` gained most on
    `rival`, a third where it lost most, the rest by lot. Without scores all are by lot.

    Only the chosen rows' texts are read into Python: the file may be large.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "predictions.parquet"
    if number <= 0 or not path.is_file():
        return []
    table = pq.read_table(path)
    ids = [str(name) for name in table.column("id").to_pylist()]
    marks = _scores(folder / "scores.parquet", models, len(ids))
    gains = _gains(marks, rival, len(ids))
    chosen = _rows(ids, gains, number, seed)
    taken = table.take(pa.array([row for _, row in chosen], pa.int64())).to_pylist()
    return [
        Sample(
            kind=kind,
            id=ids[row],
            prompt=str(texts.get("prompt") or ""),
            reference=str(texts.get("reference") or ""),
            label=texts.get("label"),
            answers={
                model: str(texts[f"{model}_answer"] or "")
                for model in models
                if f"{model}_answer" in texts
            },
            scores={model: marks[model][row] for model in models if model in marks},
            gain=gains[row],
        )
        for (kind, row), texts in zip(chosen, taken, strict=True)
    ]


def _rows(
    ids: Sequence[str], gains: Sequence[float | None], number: int, seed: str
) -> list[tuple[Kind, int]]:
    known = [(gain, row) for row, gain in enumerate(gains) if gain is not None]
    third = number // 3
    best = [row for gain, row in sorted(known, key=lambda one: (-one[0], ids[one[1]])) if gain > 0]
    worst = [row for gain, row in sorted(known, key=lambda one: (one[0], ids[one[1]])) if gain < 0]
    best, worst = best[:third], worst[:third]
    taken = {*best, *worst}
    rest = sorted(
        (row for row in range(len(ids)) if row not in taken), key=lambda r: _lot(ids[r], seed)
    )
    chosen: list[tuple[Kind, int]] = [
        *(("gain", row) for row in best),
        *(("regression", row) for row in worst),
        *(("random", row) for row in rest[: number - len(taken)]),
    ]
    return chosen


def _scores(path: Path, models: Sequence[str], rows: int) -> dict[str, list[float | None]]:
    import pyarrow.parquet as pq

    if not path.is_file():
        return {}
    there = set(pq.read_schema(path).names)
    columns = {model: f"{model}_{SCORE}" for model in models if f"{model}_{SCORE}" in there}
    found: dict[str, Any] = pq.read_table(path, columns=list(columns.values())).to_pydict()
    return {model: found[column] for model, column in columns.items() if len(found[column]) == rows}


def _gains(marks: dict[str, list[float | None]], rival: str, rows: int) -> list[float | None]:
    if rival not in marks or "challenger" not in marks:
        return [None] * rows
    return [
        None if mine is None or theirs is None else mine - theirs
        for mine, theirs in zip(marks["challenger"], marks[rival], strict=True)
    ]


def _lot(row_id: str, seed: str) -> str:
    # Not the id itself: ids may be sorted by source, and the first ones are no fair sample.
    return hashlib.sha256(f"{seed}\n{row_id}".encode("utf-8", "replace")).hexdigest()
