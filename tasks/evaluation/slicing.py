"""Divide test rows into slices: by length, turns, source, or any field of the dataset's rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.errors import UserError

MOST_LABELS = 24
"""Of one slicing; rarer ones share the slice `other`."""
OTHER = "other"
LENGTHS = (128, 512, 2048, 8192)
"""Upper bounds in tokens. Fixed, so that slices mean the same in every evaluation."""
SLICED = (str, int, float, bool)


def slice_rows(
    slicings: Sequence[str], predictions: Mapping[str, Sequence[Any]], dataset: Path | None
) -> dict[str, list[str | None]]:
    """Slicing -> each row's label; None where the row has no such field.

    `predictions` has the columns `id`, `label` and `prompt_tokens`; `dataset` is the dataset's
    `test.jsonl`, to whose rows the ids belong (a row made of a part has the id `<id>#<number>`).

    Raises: UserError for a field that no row has, or where the dataset is needed and not here.
    """
    ids = [str(name).partition("#")[0] for name in predictions["id"]]
    of_rows = [name for name in slicings if name != "length"]
    rows = _rows(_found(dataset, of_rows), set(ids)) if of_rows else {}
    found: dict[str, list[str | None]] = {}
    for slicing in slicings:
        if slicing == "length":
            found[slicing] = [_length(count) for count in predictions["prompt_tokens"]]
            continue
        labels = [_label(slicing, rows.get(name, {})) for name in ids]
        if all(label is None for label in labels):
            there = sorted(
                {k for row in rows.values() for k, v in row.items() if isinstance(v, SLICED)}
            )
            raise UserError(
                f"evaluation.slices names {slicing!r}, which no test row has. Slices can be made by "
                f"{', '.join(['length', 'turns', *(name for name in there if name != 'id')])}; the "
                "dataset's `slice` comes from the column that a source's `columns.slice` names."
            )
        found[slicing] = _common(labels)
    return found


def _found(dataset: Path | None, slicings: Sequence[str]) -> Path:
    if dataset is not None and dataset.is_file():
        return dataset
    raise UserError(
        f"evaluation.slices: {', '.join(slicings)} cannot be told without the dataset's rows, and the "
        "dataset of this evaluation is not in the store here: it was collected, or prepared by another "
        "release or on another machine. `loraline check RECIPE` prepares it again where its sources are as "
        "they were; `slices: [length]` needs no dataset."
    )


def _rows(dataset: Path, wanted: set[str]) -> dict[str, dict[str, Any]]:
    import orjson

    found: dict[str, dict[str, Any]] = {}
    with dataset.open("rb") as file:
        for line in file:
            row = orjson.loads(line)
            if row["id"] in wanted:
                found[row["id"]] = row
    return found


def _label(slicing: str, row: Mapping[str, Any]) -> str | None:
    if slicing == "turns":
        turns = sum(message["role"] == "user" for message in row.get("messages") or ())
        return _turns(turns) if turns else None
    value = row.get(slicing)
    if not isinstance(value, SLICED):
        return None
    # A source is `file:line`.
    return str(value).rpartition(":")[0] or str(value) if slicing == "source" else str(value)


def _turns(turns: int) -> str:
    if turns == 1:
        return "1 turn"
    return "2-3 turns" if turns < 4 else "4 turns or more"


def _length(tokens: int) -> str:
    lower = 1
    for upper in LENGTHS:
        if tokens <= upper:
            return f"{lower}-{upper} tokens"
        lower = upper + 1
    return f"{lower} tokens or more"


def _common(labels: list[str | None]) -> list[str | None]:
    counts = Counter(label for label in labels if label is not None)
    if len(counts) <= MOST_LABELS:
        return labels
    ranked = sorted(counts, key=lambda label: (-counts[label], label))
    kept = set(ranked[: MOST_LABELS - 1])
    return [label if label is None or label in kept else OTHER for label in labels]
