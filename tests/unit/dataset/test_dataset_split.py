import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tasks.dataset.duplicates import duplicates
from tasks.dataset.rows import Row
from tasks.dataset.settings import SplitSettings
from tasks.dataset.split import Sides, divide, on_test_side, smallest
from tasks.dataset.spool import Spool, fraction
from tasks.errors import DataError


def row(
    prompt: str, answer: str = "yes", group: str | None = None, label: str | None = None
) -> Row:
    messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Row(messages, group or f"group of {prompt}", f"rows:{prompt}", label)


ROWS = [row(f"question {i}") for i in range(1000)]
HALF = SplitSettings(test=0.3)


class Split:
    """The two sides as rows."""

    def __init__(self, rows: list[Row], found: Sides) -> None:
        self.train = [rows[i] for i in found.train]
        self.test = [rows[i] for i in found.test]
        self.dropped = {reason: len(places) for reason, places in found.dropped.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def spooled(rows: list[Row], salt: str, folder: Path) -> Spool:
    spool = Spool(folder / "rows", salt)
    for r in rows:
        spool.add(r, 0)
    return spool


@pytest.fixture
def split_rows(folder: Path):
    def split(rows: list[Row], settings: SplitSettings, salt: str) -> Split:
        spool = spooled(rows, salt, folder)
        on_test = on_test_side(
            settings, fractions=spool.column("fraction"), times=spool.column("time")
        )
        hashes = {"ids": spool.column("id"), "groups": spool.column("group")}
        found = divide(np.arange(len(rows)), on_test, settings, **hashes)
        return Split(rows, found)

    return split


@pytest.fixture
def distinct(folder: Path):
    def keep(rows: list[Row], salt: str) -> tuple[list[Row], Counter[str]]:
        spool = spooled(rows, salt, folder)
        columns = (spool.column(name) for name in ("id", "prompt", "label", "fraction"))
        found = duplicates(*columns, np.zeros(len(rows), np.bool_))
        dropped = {int(i) for gone, _ in found.values() for i in gone}
        counts = Counter({reason: len(gone) for reason, (gone, _) in found.items()})
        return [r for i, r in enumerate(rows) if i not in dropped], counts

    return keep


@pytest.fixture
def sides(split_rows):
    def sides(
        rows: list[Row], settings: SplitSettings = HALF, salt: str = "salt"
    ) -> dict[str, str]:
        split = split_rows(rows, settings, salt)
        return {r.id: "train" for r in split.train} | {r.id: "test" for r in split.test}

    return sides


def limit_rows(rows: list[Row], limit: int) -> list[Row]:
    chosen = smallest(np.array([int(r.id, 16) for r in rows], dtype=np.uint64), limit)
    return [r for r, keep in zip(rows, chosen, strict=True) if keep]


def test_shuffling_the_rows_moves_none_to_the_other_side(sides) -> None:
    shuffled = random.Random(0).sample(ROWS, len(ROWS))

    assert sides(shuffled) == sides(ROWS)


def test_new_rows_move_no_old_row(sides) -> None:
    more = [*ROWS, *(row(f"new question {i}") for i in range(500))]

    before, after = sides(ROWS), sides(more)

    assert {key: after[key] for key in before} == before


def test_another_salt_deals_the_rows_anew(sides) -> None:
    first, second = sides(ROWS, salt="a"), sides(ROWS, salt="b")

    assert 200 < sum(first[key] != second[key] for key in first) < 600


def test_the_share_of_test_groups_is_the_one_asked_for(sides) -> None:
    assert 250 < list(sides(ROWS).values()).count("test") < 350


def test_a_group_is_never_divided(split_rows) -> None:
    rows = [row(f"question {i}", group=f"group {i % 40}") for i in range(1000)]
    split = split_rows(rows, HALF, "salt")

    assert split.train
    assert split.test
    assert not {r.group for r in split.train} & {r.group for r in split.test}


def test_rows_keep_the_order_of_their_source(split_rows) -> None:
    split = split_rows(ROWS, SplitSettings(test=0.3, max_test_rows=50), "salt")
    place = {r.id: i for i, r in enumerate(ROWS)}

    for side in (split.train, split.test):
        places = [place[r.id] for r in side]
        assert places == sorted(places)


def test_test_rows_over_the_limit_do_not_become_training_rows(split_rows) -> None:
    whole = split_rows(ROWS, HALF, "salt")
    limited = split_rows(ROWS, SplitSettings(test=0.3, max_test_rows=50), "salt")

    assert len(limited.test) == 50
    assert {r.id for r in limited.test} < {r.id for r in whole.test}
    assert [r.id for r in limited.train] == [r.id for r in whole.train]
    assert limited.dropped == {"over dataset.split.max_test_rows": len(whole.test) - 50}


def test_new_rows_never_bring_a_limited_test_row_into_training(sides) -> None:
    settings = SplitSettings(test=0.3, max_test_rows=50)
    before = sides(ROWS, settings)
    after = sides([*ROWS, *(row(f"new question {i}") for i in range(500))], settings)

    moved = [key for key in before if key in after and before[key] != after[key]]
    assert moved == []
    assert list(after.values()).count("test") == 50


@pytest.mark.parametrize("salt", ["a", "b"])
def test_fractions_are_spread_evenly(salt: str) -> None:
    values = sorted(fraction(salt, str(i)) for i in range(10_000))

    assert 0 <= values[0] < values[-1] < 1
    assert all(abs(value - i / 10_000) < 0.03 for i, value in enumerate(values))


def test_duplicates_are_dropped_and_counted_by_kind(distinct) -> None:
    rows = [
        row("a", "1"),
        row("a", "1"),
        row("a", "2"),
        row("b", "1"),
        row("code 0", "Return some.", label="get some"),
        row("code 0", "Return a part.", label="get some"),
        row("code 1", "Return it all.", label="get all"),
        row("code 2", "Return it all.", label="get all"),
        row("code 3", "Return it all.", label="fetch all"),
    ]

    kept, dropped = distinct(rows, "salt")

    left = [r.messages[0]["content"] for r in kept]
    assert left in (
        ["a", "a", "b", "code 0", "code 1", "code 3"],
        ["a", "a", "b", "code 0", "code 2", "code 3"],
    )
    assert dropped == {
        "same prompt and answer": 1,
        "same prompt, another answer": 1,
        "same name and answer": 1,
    }


def test_prompts_that_differ_in_layout_only_are_no_duplicates(distinct) -> None:
    kept, _ = distinct([row("Correct: hello", "Hello"), row("Correct: Hello", "Hello")], "salt")

    assert len(kept) == 2


def test_a_copy_that_arrives_later_never_brings_a_test_row_into_training(
    split_rows, distinct
) -> None:
    """The copy lies in another group, in front of the old row, and on the training side."""
    settings = SplitSettings(test=0.3)
    groups = [f"group {i}" for i in range(50)]
    test_group = next(g for g in groups if fraction("salt", g) < 0.3)
    train_group = next(g for g in groups if fraction("salt", g) >= 0.3)
    old = row("question", group=test_group)
    copy = row("question", group=train_group)

    kept, _ = distinct([copy, old, row("other", group=train_group)], "salt")
    split = split_rows(kept, settings, "salt")

    assert [r.id for r in split.test] == [old.id]
    assert old.id not in {r.id for r in split.train}


def test_a_limited_source_keeps_its_choice_when_it_grows() -> None:
    before = {r.id for r in limit_rows(ROWS[:900], 300)}
    after = {r.id for r in limit_rows(ROWS, 300)}

    assert len(before) == len(after) == 300
    assert len(before & after) > 250
    assert limit_rows(ROWS[:5], 300) == ROWS[:5]


def dated(i: int, time: str, group: str | None = None) -> Row:
    messages = row(f"question {i}").messages
    return Row(messages, group or f"group {i}", f"rows:{i}", time=time)


def test_a_split_by_time_tests_the_newer_rows(split_rows) -> None:
    rows = [dated(i, f"2026-01-{i + 1:02}T00:00:00Z") for i in range(20)]

    after = split_rows(rows, SplitSettings(after="2026-01-16"), "salt")
    newest = split_rows(rows, SplitSettings(newest_days=4), "salt")

    assert [r.source for r in after.test] == [f"rows:{i}" for i in range(15, 20)]
    assert [r.source for r in after.train] == [f"rows:{i}" for i in range(15)]
    assert [r.source for r in newest.test] == [f"rows:{i}" for i in range(15, 20)]


def test_a_group_that_reaches_into_the_test_period_is_not_trained_on(split_rows) -> None:
    rows = [dated(1, "2026-01-01", "talk"), dated(2, "2026-03-01", "talk"), dated(3, "2026-01-02")]

    split = split_rows(rows, SplitSettings(after="2026-02-01"), "salt")

    assert [r.source for r in split.train] == ["rows:3"]
    assert [r.source for r in split.test] == ["rows:2"]
    assert split.dropped == {"older than the test period, in a group that reaches into it": 1}


def test_rows_without_a_time_are_refused_with_their_number(split_rows) -> None:
    rows = [dated(1, "2026-01-01"), row("no time"), dated(2, "yesterday")]

    with pytest.raises(
        DataError, match=r"2 of 3 rows have no time .* as `time:` of each of dataset.sources"
    ):
        split_rows(rows, SplitSettings(after="2026-01-01"), "salt")


def test_the_spool_gives_back_what_it_was_given(folder: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = (
        {"role": "user", "content": "Wie spät ist es?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "12", "tool_call_id": "1"},
        {"role": "assistant", "content": "Zwölf.", "weight": 0},
    )
    rows = [
        Row(turns, "g", "a:1", tools=({"name": "f"},), rejected=turns[3:], slice="clock"),
        row("plain", label="p"),
    ]
    spool = spooled(rows, "salt", folder)

    assert [r for _, r in spool.rows(np.array([True, True]))] == rows
    assert [r for _, r in spool.rows(np.array([False, True]))] == rows[1:]
