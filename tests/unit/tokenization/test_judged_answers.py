"""Answers that were judged one by one: their tokens, their verdicts, and what sft makes of them."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Tokens
from tasks.base import Base
from tasks.errors import DataError

Bases = Callable[..., Base]
Tokenize = Callable[..., Tokens]


def judged(desirable: bool | None, name: str, answer: str = "yes", **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "group": name,
        "messages": [
            {"role": "user", "content": f"the question {name}?"},
            {"role": "assistant", "content": answer},
        ],
        "source": f"judged.jsonl:{name}",
        "label": None,
        **({} if desirable is None else {"desirable": desirable}),
        **more,
    }


def a_pair(name: str) -> dict[str, Any]:
    return judged(None, name, rejected=[{"role": "assistant", "content": "no"}])


@pytest.fixture
def base(make_base: Bases) -> Base:
    return make_base("byte", "chatml", eos="<|im_end|>", bos=None)


def rows_of(tokens: Tokens, side: str = "train") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(tokens.path / f"{side}.parquet").to_pylist()
    return rows


def facts_of(tokens: Tokens) -> dict[str, Any]:
    return dict(json.loads((tokens.path / "card.json").read_text()))


def test_judged_answers_and_pairs_keep_their_order_their_verdicts_and_their_tokens(
    base: Base, tokenize: Tokenize
) -> None:
    given = [judged(False, "c", "never"), a_pair("a"), judged(True, "b")]
    tokens = tokenize(base, given, [judged(True, "t")], kind="judged")
    rows = rows_of(tokens)
    assert [(row["id"], row["desirable"]) for row in rows] == [
        ("c", False),
        ("a", None),
        ("b", True),
    ]
    assert [row["rejected_ids"] is None for row in rows] == [True, False, True]
    as_pairs = tokenize(base, [a_pair("a")], [a_pair("t")], kind="pairs")
    (same,) = rows_of(as_pairs)
    assert {name: rows[1][name] for name in same} == same
    assert facts_of(tokens)["verdicts"]["train"] == {"bad": 1, "good": 1, "pairs": 1}


def test_a_judged_answer_ends_with_its_turn_and_all_of_it_is_read(
    base: Base, tokenize: Tokenize
) -> None:
    from transformers import AutoTokenizer

    # The weight says what sft learns; the verdict is on this answer whatever it weighs.
    row = judged(False, "a", "a bad answer")
    row["messages"][-1]["weight"] = 0
    (made,) = rows_of(tokenize(base, [row], [judged(True, "t")], kind="judged"))
    answer = made["input_ids"][made["prompt_length"] :]
    theirs = AutoTokenizer.from_pretrained(base.path)
    assert theirs.decode(answer) == "a bad answer<|im_end|>"
    assert made["labels"] == [-100] * made["prompt_length"] + answer


def test_sft_learns_the_good_answers_alone_and_counts_the_others(
    base: Base, tokenize: Tokenize
) -> None:
    tokens = tokenize(
        base, [judged(True, "a"), judged(False, "b"), judged(None, "c")], [judged(True, "t")]
    )
    assert [row["id"] for row in rows_of(tokens)] == ["a", "c"]
    assert facts_of(tokens)["dropped"]["train"] == {"answers that were judged bad": 1}
    assert "verdicts" not in facts_of(tokens)


@pytest.mark.parametrize("desirable", [True, False])
def test_answers_that_are_all_judged_alike_are_warned_of(
    desirable: bool, base: Base, tokenize: Tokenize, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = tokenize(
        base,
        [judged(desirable, "a"), judged(desirable, "b")],
        [judged(True, "t")],
        kind="judged",
    )
    said = f"All 2 judged training answers are {'good' if desirable else 'bad'}"
    assert said in caplog.text
    assert said in (tokens.path / "summary.md").read_text()


@pytest.mark.parametrize("other", [judged(False, "b"), a_pair("b")])
def test_answers_of_both_verdicts_are_not_warned_of(
    other: dict[str, Any], base: Base, tokenize: Tokenize, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = tokenize(base, [judged(True, "a"), other], [judged(True, "t")], kind="judged")
    assert "judged training answers" not in caplog.text
    assert "judged training answers" not in (tokens.path / "summary.md").read_text()


def test_test_rows_need_a_good_answer(base: Base, tokenize: Tokenize) -> None:
    with pytest.raises(DataError, match="All 2 test rows are bad answers, and models are compared"):
        tokenize(base, [judged(True, "a")], [judged(False, "s"), judged(False, "t")], kind="judged")


def test_answers_without_a_verdict_are_refused_with_the_way_out(
    base: Base, tokenize: Tokenize
) -> None:
    with pytest.raises(DataError) as caught:
        tokenize(base, [judged(True, "a"), judged(None, "one")], [judged(True, "t")], kind="judged")
    said = str(caught.value)
    assert "1 of 2 train rows are no judged answers" in said
    assert "judged.jsonl:one" in said
    assert "`completion`, `label`: true or false" in said


def test_a_method_that_compares_answers_refuses_verdicts(base: Base, tokenize: Tokenize) -> None:
    with pytest.raises(DataError, match=r"one answer with a verdict(.|\n)*judged answers: kto"):
        tokenize(base, [a_pair("a"), judged(True, "b")], [a_pair("t")], kind="pairs")
