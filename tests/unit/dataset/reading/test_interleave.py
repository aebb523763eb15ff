"""Sources are mixed in an order that depends on their weights alone."""

import json
from collections import Counter

import pytest

from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.interleave import interleaved


@pytest.fixture
def mixed(reader, write):
    """The indices of the sources in the order of the rows, given (rows, weight) of each."""

    def order(*sources: tuple[int, float | None]) -> list[int]:
        settings = []
        for index, (count, weight) in enumerate(sources):
            rows = (json.dumps({"prompt": f"{index} {i}", "completion": "b"}) for i in range(count))
            write(f"{index}.jsonl", "".join(f"{row}\n" for row in rows))
            more = {} if weight is None else {"weight": weight}
            settings.append({"type": "jsonl", "path": f"{index}.jsonl", **more})
        found = list(interleaved(reader.opened(*settings), BadRows()))
        for index, (count, _) in enumerate(sources):
            prompts = [row.messages[0]["content"] for number, row in found if number == index]
            assert prompts == [f"{index} {i}" for i in range(count)]
        return [index for index, _ in found]

    return order


def test_without_weights_sources_follow_each_other(mixed) -> None:
    assert mixed((2, None), (3, None)) == [0, 0, 1, 1, 1]


def test_weights_mix_sources_in_proportion_and_evenly(mixed) -> None:
    order = mixed((300, 3), (100, 1))

    assert len(order) == 400
    for start in range(0, 400, 40):
        assert abs(Counter(order[start : start + 40])[0] - 30) <= 1


def test_every_row_comes_once_when_a_source_ends_early(mixed) -> None:
    order = mixed((5, 10), (30, 2), (60, 1))

    assert Counter(order) == {0: 5, 1: 30, 2: 60}
    assert 0 not in order[10:]
    assert abs(Counter(order[10:40])[1] - 20) <= 2


def test_a_source_without_weight_among_weighted_ones_has_one(mixed) -> None:
    assert mixed((20, 2), (10, None)) == mixed((20, 2), (10, 1))


def test_the_order_is_the_same_each_time(mixed) -> None:
    weights = [(40, 0.3), (40, 0.5), (40, 0.2)]

    assert mixed(*weights) == mixed(*weights)
    assert len(mixed(*weights)) == 120


def test_weights_far_apart_lose_no_row(mixed) -> None:
    assert Counter(mixed((50, 1e6), (50, 1e-6))) == {0: 50, 1: 50}
