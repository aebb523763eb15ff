"""What a run may do and a person seldom means is said before anything is trained."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.errors import DataError


def pair(prompt: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, **more}


def chat(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Any:
    return lambda: [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def test_a_group_larger_than_the_test_side_should_be_is_warned_about(
    prepare, words, warned
) -> None:
    hello = [chat("Hello", "Hi, how can I help?", words(12), words(12)) for _ in range(150)]
    others = [chat(words(12), words(12)) for _ in range(100)]

    sides = prepare([*hello, *others])

    (warning,) = warned()
    assert warning.startswith("150 of 250 rows (60%) are one group ('prompt-")
    assert "for example rows.jsonl:1)" in warning
    on_test = any(row["messages"][0]["content"] == "Hello" for row in sides.rows("test"))
    assert f"on the {'test' if on_test else 'training'} side as a whole" in warning
    assert "101 groups" in warning
    assert sides.card["warnings"] == [warning]


def test_groups_of_ordinary_size_are_not_warned_about(prepare, words, warned) -> None:
    rows = [pair(words(12), words(12), doc=i // 19) for i in range(190)]

    assert prepare(rows, source={"group": "doc"}).card["warnings"] == warned() == []


def test_decontamination_that_takes_a_tenth_is_warned_about_with_the_ways_out(
    prepare, words, warned
) -> None:
    rows = [pair(words(20), words(60), doc=f"a{i}") for i in range(100)]
    copies = [
        pair(f"{words(4)} {row['prompt']}", row["completion"], doc=f"{i}b")
        for i, row in enumerate(rows)
    ]

    sides = prepare([*rows, *copies], source={"group": "doc"}, cleaning={"near_duplicates": None})

    gone = sides.dropped["repeats an evaluation row"]
    trained = gone + sides.dataset.rows["train"]
    assert gone > 0.1 * trained
    (warning,) = warned()
    assert warning.startswith(f"Decontamination left out {gone:,} of {trained:,} training rows")
    assert "dataset.cleaning.contamination.similarity" in warning
    assert "dataset.sources[].group" in warning


def test_decontamination_that_leaves_nothing_is_not_told_as_a_fault_of_the_split(
    prepare, words
) -> None:
    rows = [pair(words(30), words(60)) for _ in range(3)]
    prepare.write(
        "frozen.jsonl", [pair(f"{row['prompt']} please", row["completion"]) for row in rows]
    )

    with pytest.raises(DataError) as caught:
        prepare(
            rows,
            holdout={"type": "files", "path": "frozen.jsonl"},
            split={"test": 0},
            cleaning={"near_duplicates": None},
        )

    assert "Decontamination leaves no train row: all 3 rows" in str(caught.value)
    assert "dataset.split" not in str(caught.value)


def test_evaluation_rows_that_many_training_rows_are_like_are_listed_with_the_ways_out(
    prepare, words, warned
) -> None:
    question = words(20)
    prepare.write("frozen.jsonl", [pair(question, words(20)), pair(words(20), words(20))])
    rows = [pair(question, words(20), doc=f"a{i}") for i in range(11)]
    rows += [pair(words(20), words(20), doc=f"b{i}") for i in range(60)]

    sides = prepare(
        rows,
        source={"group": "doc"},
        holdout={"type": "files", "path": "frozen.jsonl"},
        split={"test": 0},
    )

    assert sides.dataset.rows == {"train": 71, "test": 2}
    (warning,) = warned()
    first = sides.rows("test")[0]["id"]
    assert warning.startswith("1 of 2 evaluation rows are each like more than 10 training rows")
    assert f"which stay: {first} (frozen.jsonl:1)" in warning
    assert "dataset.sources[].group" in warning
    assert sides.card["warnings"] == [warning]
    assert sides.card["resembled_evaluation_rows"] == [first]
    summary = (sides.dataset.path / "summary.md").read_text(encoding="utf-8")
    assert "1 of 2 evaluation rows are each like" in summary


def test_evaluation_rows_that_cannot_be_judged_are_counted_and_not_called_clean(
    prepare, words
) -> None:
    prepare.write("frozen.jsonl", [pair("Hi", "Hello"), pair(words(20), words(20))])

    sides = prepare(
        [pair(words(20), words(20)) for _ in range(60)],
        holdout={"type": "files", "path": "frozen.jsonl"},
        split={"test": 0},
    )

    assert sides.card["unrecognisable_evaluation_rows"] == 1
    summary = (sides.dataset.path / "summary.md").read_text(encoding="utf-8")
    assert "1 of 2 evaluation rows cannot be judged" in summary
    assert "Nothing says that they are clean." in summary


@pytest.mark.parametrize("limit", [{"max_rows": 10}, {"weight": 2}])
def test_a_holdout_has_no_limits_which_would_be_passed_over(prepare, words, limit: Any) -> None:
    with pytest.raises(
        ValidationError, match=f"a holdout is evaluated whole.*no {next(iter(limit))}"
    ):
        prepare([pair("a", "b")], holdout={"type": "files", "path": "rows.jsonl", **limit})


def test_a_planted_copy_leaves_training_and_the_test_row_stays(prepare, words) -> None:
    rows = [pair(words(20), words(40)) for _ in range(100)]
    tested = prepare(rows).rows("test")[0]
    question, answer = (message["content"] for message in tested["messages"])

    sides = prepare(
        [*rows, *(pair(f"{words(6)} {question} {answer}", f"{words(20)} {i}") for i in "ab")]
    )

    assert tested["id"] in sides.ids("test")
    assert sides.dropped == {"repeats an evaluation row": 2}
    assert not any(question in row["messages"][0]["content"] for row in sides.rows("train"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("normalise", False),
        ("personal_data", {"policy": "redact"}),
        ("near_duplicates", {"threshold": 0.9}),
        ("length", {"min_answer_characters": 1}),
        ("language", {"keep": ["en", "de"]}),
        ("contamination", {"similarity": 0.6}),
    ],
)
def test_other_cleaning_is_another_dataset(prepare, words, name: str, value: Any) -> None:
    rows = [pair(words(20), words(40)) for _ in range(60)]

    first = prepare(rows).dataset
    second = prepare(rows, cleaning={name: value}).dataset

    assert first.fingerprint != second.fingerprint
    assert not second.reused


def clusters(words: Any, copies: int) -> list[dict[str, Any]]:
    found = []
    for i in range(150):
        prompt, answer = words(15), words(40)
        found += [pair(f"{prompt} {words(1)}", f"{answer} {words(1)}", c=i) for _ in range(copies)]
    return found


def test_clusters_of_near_copies_that_gather_on_the_test_side_are_warned_about(
    prepare, words, warned
) -> None:
    rows = clusters(words, 8)

    sides = prepare(rows, split={"test": 0.05}, cleaning={"contamination": None})

    (warning,) = warned()
    groups = sides.card["groups"]
    tested, count = groups["test"], sum(groups.values())
    assert warning.startswith(f"{tested} of {count} groups of rows are on the test side (")
    assert f"{sides.dropped['near duplicate']:,} rows went as near duplicates" in warning
    assert "dataset.sources[].group" in warning
    assert sides.card["warnings"] == [warning]


def test_clusters_that_are_groups_are_not_warned_about(prepare, words, warned) -> None:
    sides = prepare(clusters(words, 8), source={"group": "c"}, split={"test": 0.1})

    assert warned() == []
    assert len(sides.rows("train")) > 100


def test_a_date_in_the_future_is_warned_about(prepare, words, warned) -> None:
    now = datetime.now(UTC)
    rows = [pair(words(9), words(9), at=(now - timedelta(days=i)).isoformat()) for i in range(200)]
    settings = {"source": {"time": "at"}, "split": {"newest_days": 30}}
    prepare(
        [*rows, pair(words(9), words(9), at=(now + timedelta(hours=20)).isoformat())], **settings
    )
    assert warned() == []

    late = now + timedelta(days=9000)
    sides = prepare([*rows, pair(words(9), words(9), at=late.isoformat())], **settings)

    future, few = warned()
    assert future.startswith(f"1 row is dated in the future, the latest at {late.date()}")
    assert "(rows.jsonl:201). dataset.split.newest_days counts from the newest row." in future
    assert few.startswith("Only 1 of 201 rows are test rows")
    assert sides.card["warnings"] == [future, few]


def test_a_few_test_rows_of_many_are_warned_about(prepare, words, warned) -> None:
    rows = [pair(words(9), words(9)) for _ in range(120)]

    sides = prepare(rows, split={"test": 0.02})

    (warning,) = warned()
    assert 0 < len(sides.rows("test")) < 10
    assert warning.startswith(f"Only {len(sides.rows('test'))} of 120 rows are test rows")
