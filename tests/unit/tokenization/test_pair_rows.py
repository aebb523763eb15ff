"""Preference pairs: one prompt, two answers, both whole and verified as any trained answer is."""

from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from tasks.artifacts import Tokens
from tasks.base import Base
from tasks.errors import DataError

Bases = Callable[..., Base]
Tokenize = Callable[..., Tokens]
TEMPLATES = [
    ("phi", "phi3", "<|endoftext|>", "<|end|>"),
    ("byte", "chatml", "<|im_end|>", "<|im_end|>"),
]


def pair(better: str = "yes", worse: str = "no", name: str = "a", **more: Any) -> dict[str, Any]:
    prompt = more.pop("prompt", [{"role": "user", "content": "the question?"}])
    return {
        "id": name,
        "group": name,
        "messages": [*prompt, {"role": "assistant", "content": better}],
        "rejected": [{"role": "assistant", "content": worse}],
        "source": f"pairs.jsonl:{name}",
        "label": None,
        **more,
    }


@pytest.fixture
def base(make_base: Bases) -> Base:
    return make_base("byte", "chatml", eos="<|im_end|>", bos=None)


def rows_of(tokens: Tokens) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(tokens.path / "train.parquet").to_pylist()
    return rows


@pytest.mark.parametrize(("kind", "template", "eos", "end"), TEMPLATES)
def test_both_answers_are_what_the_template_writes_up_to_the_end_of_their_turn(
    kind: str, template: str, eos: str, end: str, make_base: Bases, tokenize: Tokenize
) -> None:
    base = make_base(kind, template, eos=eos, bos=None if kind == "byte" else "<s>")
    row = pair("the better one", "the worse one, which is longer")
    tokens = tokenize(base, [row], [pair(name="t")], kind="pairs")
    (made,) = rows_of(tokens)
    theirs = AutoTokenizer.from_pretrained(base.path)
    prompt = theirs.apply_chat_template(
        row["messages"][:-1], add_generation_prompt=True, return_dict=False
    )
    assert made["input_ids"][: made["prompt_length"]] == prompt
    for ids, last in (
        (made["input_ids"], row["messages"][-1]),
        (prompt + made["rejected_ids"], row["rejected"][0]),
    ):
        whole = theirs.apply_chat_template([*row["messages"][:-1], last], return_dict=False)
        assert whole[: len(ids)] == ids
        assert ids[-1] == theirs.convert_tokens_to_ids(end)
    answer = made["input_ids"][made["prompt_length"] :]
    assert made["labels"] == [-100] * made["prompt_length"] + answer


def test_pairs_whose_answers_are_the_same_once_rendered_are_left_out_and_counted(
    make_base: Bases, tokenize: Tokenize
) -> None:
    # Phi's special tokens swallow the white space behind them.
    base = make_base("phi", "phi3", eos="<|endoftext|>")
    same = pair("yes", " yes", "same")
    tokens = tokenize(base, [same, pair(name="b")], [pair(name="t")], kind="pairs")
    assert [row["id"] for row in rows_of(tokens)] == ["b"]
    assert "both answers are the same once rendered" in (tokens.path / "card.json").read_text()


def test_a_pair_counts_as_long_when_its_longer_answer_does_not_fit(
    base: Base, tokenize: Tokenize
) -> None:
    long = pair("short", "w" * 100, "long")
    with pytest.raises(DataError, match=r"1 of 2 train rows are longer(.|\n)*row long"):
        tokenize(base, [long, pair(name="b")], [pair(name="t")], kind="pairs", max_length=64)
    tokens = tokenize(
        base,
        [long, pair(name="b")],
        [pair(name="t")],
        kind="pairs",
        max_length=64,
        long_rows="drop",
    )
    assert [row["id"] for row in rows_of(tokens)] == ["b"]


@pytest.mark.parametrize(("better", "worse"), [("b" * 20, "w" * 9), ("b" * 9, "w" * 20)])
def test_a_prompt_is_cut_to_what_leaves_room_for_the_longer_answer_and_no_answer_is(
    better: str, worse: str, base: Base, tokenize: Tokenize
) -> None:
    long = pair(better, worse, prompt=[{"role": "user", "content": "q" * 200}])
    tokens = tokenize(
        base,
        [long],
        [pair(name="t")],
        kind="pairs",
        max_length=80,
        long_rows="truncate_prompt",
    )
    (row,) = rows_of(tokens)
    theirs = AutoTokenizer.from_pretrained(base.path)
    chosen = row["input_ids"][row["prompt_length"] :]
    assert theirs.decode(chosen) == f"{better}<|im_end|>"
    assert theirs.decode(row["rejected_ids"]) == f"{worse}<|im_end|>"
    assert row["prompt_length"] + max(len(chosen), len(row["rejected_ids"])) == 80


def test_a_template_that_changes_the_prompt_for_an_answer_is_refused(
    make_base: Bases, tokenize: Tokenize
) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    odd = "{% if messages[-1].content == 'no' %}!{% endif %}" + template
    base = make_base("byte", odd, eos="<|im_end|>", bos=None)
    with pytest.raises(DataError, match="differently when an answer"):
        tokenize(base, [pair()], [pair(name="t")], kind="pairs")


def test_rows_with_one_answer_are_refused_with_their_number_and_the_way_out(
    base: Base, tokenize: Tokenize
) -> None:
    one = pair(name="one") | {"rejected": []}
    with pytest.raises(DataError) as caught:
        tokenize(base, [pair(), one], [pair(name="t")], kind="pairs")
    said = str(caught.value)
    assert "1 of 2 train rows are no pairs of answers" in said
    assert "pairs.jsonl:one" in said
    assert "conversations: sft" in said


def test_a_worse_ending_of_several_messages_is_refused(base: Base, tokenize: Tokenize) -> None:
    several = pair()
    several["rejected"] = [
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "really?"},
        {"role": "assistant", "content": "no!"},
    ]
    with pytest.raises(DataError, match="its rejected ending has 3 messages"):
        tokenize(base, [several], [pair(name="t")], kind="pairs")


def test_sft_learns_the_better_answers_of_pairs(base: Base, tokenize: Tokenize) -> None:
    tokens = tokenize(base, [pair("yes", "no")], [pair(name="t")])
    (row,) = rows_of(tokens)
    assert row["reference"] == "yes"
    assert "rejected_ids" not in row


def test_answers_that_weigh_nothing_in_sft_still_compare(base: Base, tokenize: Tokenize) -> None:
    row = pair()
    row["messages"][-1]["weight"] = 0
    tokens = tokenize(base, [row], [pair(name="t")], kind="pairs")
    assert len(rows_of(tokens)) == 1
