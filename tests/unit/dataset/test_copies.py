"""Copies go, and nothing that merely shares a prompt; no copy moves a test row."""

import random
from typing import Any

import pytest


def pair(prompt: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, **more}


def test_several_answers_to_one_prompt_are_all_kept_and_on_one_side(prepare, words) -> None:
    rows = [pair(f"Write a poem on {words(3)}.", words(20)) for _ in range(40)]
    rows = [pair(row["prompt"], words(20)) for row in rows for _ in range(8)]

    sides = prepare(rows)

    assert sum(sides.dataset.rows.values()) == 320
    assert not sides.prompts("train") & sides.prompts("test")


def test_a_prompt_that_all_rows_share_is_trained_with_a_group_column(prepare, words) -> None:
    rows = [pair("Write a description for our shop.", words(12), doc=i) for i in range(200)]

    sides = prepare(rows, source={"group": "doc"})

    assert sum(sides.dataset.rows.values()) == 200
    assert sides.dropped == {}


def test_a_prompt_on_both_sides_by_the_groups_of_the_recipe_leaves_the_training_side(
    prepare, words
) -> None:
    prompts = [f"{words(4)}?" for _ in range(60)]
    rows = [
        pair(prompt, words(20), doc=f"{i}.{k}") for i, prompt in enumerate(prompts) for k in (1, 2)
    ]

    sides = prepare(rows, source={"group": "doc"}, cleaning={"contamination": None})

    assert not sides.prompts("train") & sides.prompts("test")
    gone = sides.dropped["same prompt as an evaluation row"]
    assert 0 < gone == 120 - sum(sides.dataset.rows.values())
    assert len(sides.rows("test")) > gone / 2


def test_preference_pairs_that_differ_in_the_rejected_answer_are_all_kept(prepare, words) -> None:
    rows = [
        {"prompt": prompt, "chosen": chosen, "rejected": words(14)}
        for prompt, chosen in [(words(12), words(60)) for _ in range(40)]
        for _ in range(3)
    ]

    sides = prepare([*rows, rows[0]])

    assert sum(sides.dataset.rows.values()) == 120
    assert sides.dropped == {"same prompt and answer": 1}


def test_rows_that_differ_in_their_tools_are_no_copies(prepare, words) -> None:
    def tools(name: str) -> list[dict[str, Any]]:
        return [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}]

    talks = [
        [{"role": "user", "content": words(8)}, {"role": "assistant", "content": words(5)}]
        for _ in range(50)
    ]
    rows = [
        {"messages": talk, "tools": tools(name)} for talk in talks for name in ("alpha", "beta")
    ]

    sides = prepare([*rows, rows[-1]])

    assert sum(sides.dataset.rows.values()) == 100
    assert len(sides.ids("train") | sides.ids("test")) == 100


def answers_and_copies(words: Any) -> list[dict[str, Any]]:
    rows = []
    for i in range(150):
        prompt = f"{words(12)}?"
        rows += [pair(prompt, words(15)) for _ in range(1 + i % 3)]
        if i % 4 == 0:
            rows.append(pair(prompt, f"{rows[-1]['completion']}!"))
    return rows


def test_shuffling_rows_with_several_answers_and_near_copies_changes_neither_side(
    prepare, words
) -> None:
    rows = answers_and_copies(words)
    before = prepare(rows)
    after = prepare(random.Random(1).sample(rows, len(rows)))

    assert before.dropped["near duplicate"] > 5
    for side in ("train", "test"):
        assert before.ids(side) == after.ids(side)


@pytest.mark.parametrize("where", ["before", "after"])
def test_new_answers_to_old_prompts_leave_every_test_row_where_it_is(
    prepare, words, where: str
) -> None:
    rows = answers_and_copies(words)
    new = [pair(row["prompt"], words(15)) for row in rows[::3]]
    old = prepare(rows)
    now = prepare([*new, *rows] if where == "before" else [*rows, *new])

    assert old.ids("test") <= now.ids("test")
    assert not old.ids("test") & now.ids("train")


def test_late_copies_that_are_dated_early_push_no_row_out_of_the_test_period(
    prepare, words
) -> None:
    def dated(row: dict[str, Any], month: int) -> dict[str, Any]:
        return {**row, "time": f"2026-0{month}-01"}

    rows = [dated(pair(f"{words(30)}?", words(40)), 1 + i // 100) for i in range(400)]
    tested = rows[300:]
    late = [
        *(dated(pair(f"{row['prompt']} now", f"{row['completion']} ok"), 2) for row in tested[:30]),
        *(dated(pair(row["prompt"], words(9)), 2) for row in tested[30:60]),
        *(dated(row, 2) for row in tested[60:]),
    ]
    settings = {"source": {"time": "time"}, "split": {"after": "2026-04-01"}}

    before = prepare(rows, **settings)
    for changed in ([*rows, *late], [*late, *rows]):
        after = prepare(changed, **settings)
        assert after.ids("test") == before.ids("test")
        assert after.ids("train") == before.ids("train")


def test_a_holdout_keeps_its_own_copies_and_what_filters_would_take(prepare, words) -> None:
    frozen = [
        *(pair("What is our address?", words(9)) for _ in range(10)),
        *[pair(words(9), "ok")] * 2,
        pair("Once", f"{words(30)} end"),
        pair("Once", f"{words(0)}{words(30)}"),
    ]
    frozen.append(pair("Once", f"{frozen[-1]['completion']}!"))
    prepare.write("frozen.jsonl", frozen)
    rows = [pair(words(12), words(12)) for _ in range(60)]

    sides = prepare(
        [*rows, frozen[0], pair(f"{words(1)} {frozen[-1]['prompt']}", frozen[-1]["completion"])],
        holdout={"type": "files", "path": "frozen.jsonl"},
        cleaning={"length": {"min_answer_characters": 20}},
        split={"test": 0},
    )

    asked = [row["messages"][1]["content"] for row in sides.rows("test")]
    assert asked == [row["completion"] for row in frozen]
    assert sides.card["holdout_rows"] == len(frozen)
    assert not {row["messages"][1]["content"] for row in sides.rows("train")} & set(asked)


def test_rows_of_a_holdouts_group_are_not_trained(prepare, words) -> None:
    """The groups are the recipe's: nothing that the rows say gives them away."""
    prepare.write("frozen.jsonl", [pair(words(9), words(9), doc=f"d{i}") for i in range(5)])
    rows = [pair(words(9), words(9), doc=f"d{i % 30}") for i in range(120)]

    sides = prepare(
        rows,
        source={"group": "doc"},
        holdout={"type": "files", "path": "frozen.jsonl", "group": "doc"},
        split={"test": 0},
    )

    assert sides.dropped == {"in a group of the holdout": 20}
    assert not {row["group"] for row in sides.rows("train")} & {
        row["group"] for row in sides.rows("test")
    }
