"""Weights decide how many rows of each source are trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.dataset.weights import beyond_quotas, quotas


@pytest.mark.parametrize(
    ("rows", "weights", "kept"),
    [
        ([300, 300], [None, None], [300, 300]),
        ([300, 300], [2, 1], [300, 150]),
        ([1000, 100], [3, 1], [300, 100]),
        ([1000, 100], [0.75, 0.25], [300, 100]),
        ([100, 500, 1000], [2, None, 1], [100, 50, 50]),
        ([50, 50], [1e6, 1e-6], [50, 1]),
        ([0, 40, 40], [5, 1, 2], [0, 20, 40]),
        ([7, 7], [1, 1], [7, 7]),
    ],
)
def test_rows_are_kept_in_proportion_to_the_weights(
    rows: list[int], weights: list[float | None], kept: list[int]
) -> None:
    assert quotas(rows, weights) == kept


def test_the_rows_with_the_smallest_hashes_stay_wherever_they_stand() -> None:
    ids = np.array([9, 2, 7, 1, 5, 3], dtype=np.uint64)
    sources = np.array([0, 0, 0, 0, 1, 1])

    assert beyond_quotas(np.arange(6), sources, ids, [1, 1]).tolist() == [0, 2]
    assert beyond_quotas(np.array([0, 2, 4]), sources, ids, [1, 1]).tolist() == [0]


def source(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "files", "path": f"{name}.jsonl", **more}


def of(sides: Any, side: str) -> dict[str, int]:
    names = [Path(row["source"]).stem for row in sides.rows(side)]
    return {name: names.count(name) for name in sorted(set(names))}


def rows(words: Any, count: int) -> list[dict[str, str]]:
    return [{"prompt": words(15), "completion": words(20)} for _ in range(count)]


def test_a_run_trains_three_rows_of_one_source_for_each_of_the_other(prepare, words) -> None:
    prepare.write("chats.jsonl", rows(words, 400))
    prepare.write("tickets.jsonl", rows(words, 60))
    plain = prepare(sources=[source("chats"), source("tickets")])

    mixed = prepare(sources=[source("chats", weight=3), source("tickets", weight=1)])

    trained = of(mixed, "train")
    assert trained["tickets"] == of(plain, "train")["tickets"]
    assert trained["chats"] == 3 * trained["tickets"]
    assert of(mixed, "test") == of(plain, "test")
    gone = of(plain, "train")["chats"] - trained["chats"]
    assert mixed.dropped == {"over the source's dataset.sources[].weight": gone}
    assert mixed.card["steps"][-1] == {"step": "weights", "rows": sum(mixed.dataset.rows.values())}


def test_new_rows_of_a_weighted_source_move_no_row_to_the_other_side(prepare, words) -> None:
    chats, tickets = rows(words, 300), rows(words, 60)
    sources = [source("chats", weight=1), source("tickets", weight=1)]
    prepare.write("chats.jsonl", chats)
    prepare.write("tickets.jsonl", tickets)
    before = prepare(sources=sources)

    prepare.write("chats.jsonl", [*rows(words, 100), *chats])
    prepare.write("tickets.jsonl", [*tickets, *rows(words, 30)])
    after = prepare(sources=sources)

    assert before.ids("test") <= after.ids("test")
    assert not before.ids("train") & after.ids("test")
    assert of(after, "train")["chats"] == of(after, "train")["tickets"]


def test_weights_that_leave_most_of_a_source_unused_are_warned_about(
    prepare, words, caplog: pytest.LogCaptureFixture
) -> None:
    prepare.write("chats.jsonl", rows(words, 200))
    prepare.write("tickets.jsonl", rows(words, 30))

    prepare(sources=[source("chats", weight=1), source("tickets", weight=1)])

    (warning,) = [
        record.getMessage() for record in caplog.records if "weight" in record.msg % record.args
    ]
    assert "training rows of chats.jsonl are used" in warning
