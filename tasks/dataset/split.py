"""Take out duplicates and divide rows into train and test, by hashes that later rows cannot move."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.dataset.rows import Row
from tasks.dataset.settings import SplitSettings


@dataclass
class Split:
    """Rows of both sides in the order of the sources, and what was left out on the way."""

    train: list[Row] = field(default_factory=list)
    test: list[Row] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason."""


def fraction(salt: str, key: str) -> float:
    """A number in [0, 1) that depends on salt and key only, evenly spread over keys."""
    first_bytes = hashlib.sha256(f"{salt}\0{key}".encode()).digest()[:8]
    # 53 bits: all that a float holds, so that the largest value stays below 1.
    return (int.from_bytes(first_bytes) >> 11) / 2**53


def split_rows(rows: Sequence[Row], settings: SplitSettings, salt: str) -> Split:
    """Divide rows by the hash of their group: a share of `settings.test` of the groups is test.

    A row's side depends on its group and the salt, so that neither its place, nor new rows, nor the
    run's seed can move it. `max_test_rows` keeps the test rows with the smallest hashes and leaves
    the others out of training too: a row that is pushed out must not come back as a training row.
    """
    result = Split()
    for row in rows:
        side = result.test if fraction(salt, row.group) < settings.test else result.train
        side.append(row)
    limit = settings.max_test_rows
    if limit is not None and len(result.test) > limit:
        # By the row and not by its group: few large groups would stand for all others.
        kept = set(sorted(row.id for row in result.test)[:limit])
        result.dropped["over dataset.split.max_test_rows"] = len(result.test) - limit
        result.test = [row for row in result.test if row.id in kept]
    return result


def distinct(rows: Sequence[Row], salt: str) -> tuple[list[Row], Counter[str]]:
    """Keep one row of each set of duplicates; also return how many were dropped, by reason.

    Duplicates may lie in several groups. The one whose group has the smallest hash stays: when one
    of them is a test row, so is the one that is kept, and no copy that arrives later can bring a
    test row into training.
    """
    dropped: Counter[str] = Counter()
    kept: set[int] = set(range(len(rows)))
    order = sorted(kept, key=lambda i: (fraction(salt, rows[i].group), i))
    seen_rows: set[str] = set()
    seen_prompts: set[str] = set()
    seen_labels: set[tuple[str, str]] = set()
    for i in order:
        row = rows[i]
        # The same name with the same words: an override or a copied method.
        label = (row.label, row.answer) if row.label is not None else None
        if row.id in seen_rows:
            reason = "same prompt and answer"
        elif row.prompt in seen_prompts:
            reason = "same prompt, another answer"
        elif label in seen_labels:
            reason = "same name and answer"
        else:
            seen_rows.add(row.id)
            seen_prompts.add(row.prompt)
            if label is not None:
                seen_labels.add(label)
            continue
        dropped[reason] += 1
        kept.discard(i)
    return [rows[i] for i in sorted(kept)], dropped


def limit_rows(rows: Sequence[Row], limit: int) -> list[Row]:
    """The `limit` rows with the smallest ids, in their order: ids are hashes, so the choice is stable."""
    if len(rows) <= limit:
        return list(rows)
    kept = set(sorted(row.id for row in rows)[:limit])
    return [row for row in rows if row.id in kept]
