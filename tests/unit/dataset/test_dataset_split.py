import random

import pytest

from tasks.dataset.rows import Row
from tasks.dataset.settings import SplitSettings
from tasks.dataset.split import distinct, fraction, limit_rows, split_rows


def row(
    prompt: str, answer: str = "yes", group: str | None = None, label: str | None = None
) -> Row:
    messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Row(messages, group or f"group of {prompt}", f"rows:{prompt}", label)


ROWS = [row(f"question {i}") for i in range(1000)]
HALF = SplitSettings(test=0.3)


def sides(rows: list[Row], settings: SplitSettings = HALF, salt: str = "salt") -> dict[str, str]:
    split = split_rows(rows, settings, salt)
    return {r.id: "train" for r in split.train} | {r.id: "test" for r in split.test}


def test_shuffling_the_rows_moves_none_to_the_other_side() -> None:
    shuffled = random.Random(0).sample(ROWS, len(ROWS))

    assert sides(shuffled) == sides(ROWS)


def test_new_rows_move_no_old_row() -> None:
    more = [*ROWS, *(row(f"new question {i}") for i in range(500))]

    before, after = sides(ROWS), sides(more)

    assert {key: after[key] for key in before} == before


def test_another_salt_deals_the_rows_anew() -> None:
    first, second = sides(ROWS, salt="a"), sides(ROWS, salt="b")

    assert 200 < sum(first[key] != second[key] for key in first) < 600


def test_the_share_of_test_groups_is_the_one_asked_for() -> None:
    assert 250 < list(sides(ROWS).values()).count("test") < 350


def test_a_group_is_never_divided() -> None:
    rows = [row(f"question {i}", group=f"group {i % 40}") for i in range(1000)]
    split = split_rows(rows, HALF, "salt")

    assert split.train
    assert split.test
    assert not {r.group for r in split.train} & {r.group for r in split.test}


def test_rows_keep_the_order_of_their_source() -> None:
    split = split_rows(ROWS, SplitSettings(test=0.3, max_test_rows=50), "salt")
    place = {r.id: i for i, r in enumerate(ROWS)}

    for side in (split.train, split.test):
        places = [place[r.id] for r in side]
        assert places == sorted(places)


def test_test_rows_over_the_limit_do_not_become_training_rows() -> None:
    whole = split_rows(ROWS, HALF, "salt")
    limited = split_rows(ROWS, SplitSettings(test=0.3, max_test_rows=50), "salt")

    assert len(limited.test) == 50
    assert {r.id for r in limited.test} < {r.id for r in whole.test}
    assert [r.id for r in limited.train] == [r.id for r in whole.train]
    assert limited.dropped == {"over dataset.split.max_test_rows": len(whole.test) - 50}


def test_new_rows_never_bring_a_limited_test_row_into_training() -> None:
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


def test_duplicates_are_dropped_and_counted_by_kind() -> None:
    rows = [
        row("a", "1"),
        row("a", "1"),
        row("a", "2"),
        row("b", "1"),
        row("code 1", "Return it all.", label="get all"),
        row("code 2", "Return it all.", label="get all"),
        row("code 3", "Return it all.", label="fetch all"),
    ]

    kept, dropped = distinct(rows, "salt")

    assert [r.messages[0]["content"] for r in kept] == ["a", "b", "code 1", "code 3"] or [
        r.messages[0]["content"] for r in kept
    ] == ["a", "b", "code 2", "code 3"]
    assert dropped == {
        "same prompt and answer": 1,
        "same prompt, another answer": 1,
        "same name and answer": 1,
    }


def test_prompts_that_differ_in_layout_only_are_no_duplicates() -> None:
    kept, _ = distinct([row("Correct: hello", "Hello"), row("Correct: Hello", "It is.")], "salt")

    assert len(kept) == 2


def test_a_copy_that_arrives_later_never_brings_a_test_row_into_training() -> None:
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
