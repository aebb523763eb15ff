"""Which answers are trained: settings, weights, tool calls, and what other masks say."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.base import Base
from tasks.errors import DataError
from tasks.tokenization.chat import Chat
from tasks.tokenization.preview import preview
from tasks.tokenization.spans import UNTRAINED

Row = dict[str, Any]

WEATHER = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a place",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    }
]


def row(messages: list[Row], **more: Any) -> Row:
    return {"id": "a", "group": "g", "messages": messages, "source": "s:1", "label": None, **more}


def chat(*answers: str, weights: dict[int, int] | None = None) -> list[Row]:
    messages: list[Row] = [{"role": "system", "content": "Be brief."}]
    for k, answer in enumerate(answers):
        messages.append({"role": "user", "content": f"Question {k}?"})
        messages.append({"role": "assistant", "content": answer})
        if weights and k in weights:
            messages[-1]["weight"] = weights[k]
    return messages


def tool_messages(arguments: Any = '{"place": "Łódź"}') -> list[Row]:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [
        {"role": "user", "content": "How is it in Łódź?"},
        {"role": "assistant", "content": None, "tool_calls": [call], "name": None},
        {"role": "tool", "content": '{"rain": "much"}', "name": "weather"},
        {"role": "assistant", "content": "It rains."},
    ]


def trained(folder: Path, base: Base) -> list[str]:
    """Trained text of the first row, one string for each stretch."""
    (shown,) = preview(folder, base.path, rows=1)
    return [
        "".join(segment.text for segment in stretch)
        for is_trained, stretch in groupby(shown.segments, key=lambda segment: segment.trained)
        if is_trained
    ]


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        ("assistant", ["One.<|end|>", "Two.<|end|>", "Three.<|end|>"]),
        ("last_assistant", ["Three.<|end|>"]),
    ],
)
def test_train_on_chooses_the_answers(
    make_base: Any, tokenize: Any, train_on: str, expected: list[str]
) -> None:
    base = make_base()
    tokens = tokenize(base, [row(chat("One.", "Two.", "Three."))], train_on=train_on)

    assert trained(tokens.path, base) == expected
    (read,) = pq.read_table(tokens.path / "train.parquet").to_pylist()
    assert read["reference"] == "Three."
    assert read["prompt"].endswith("Question 2?<|end|>\n<|assistant|>\n")


def test_train_on_all_trains_every_token(make_base: Any, tokenize: Any) -> None:
    tokens = tokenize(make_base(), [row(chat("One.", "Two."))], train_on="all")

    (read,) = pq.read_table(tokens.path / "train.parquet").to_pylist()
    assert read["labels"] == read["input_ids"]
    assert tokens.trained_tokens["train"] == len(read["input_ids"])


def test_an_answer_of_weight_0_is_read_and_not_trained(make_base: Any, tokenize: Any) -> None:
    base = make_base()
    messages = chat("One.", "Two.", "Three.", weights={0: 0, 1: 1})
    tokens = tokenize(base, [row(messages)])

    assert trained(tokens.path, base) == ["Two.<|end|>", "Three.<|end|>"]
    (read,) = pq.read_table(tokens.path / "train.parquet").to_pylist()
    assert "One." in Chat(base.path).decode(read["input_ids"])


def test_what_follows_the_last_trained_answer_is_left_out(make_base: Any, tokenize: Any) -> None:
    base = make_base()
    tokens = tokenize(base, [row(chat("One.", "Two.", weights={1: 0}))])

    (read,) = pq.read_table(tokens.path / "train.parquet").to_pylist()
    text = Chat(base.path).decode(read["input_ids"])
    assert text.endswith("One.<|end|><|endoftext|>")
    assert read["reference"] == "One."


def test_rows_without_an_answer_to_train_are_counted(make_base: Any, tokenize: Any) -> None:
    rows = [row(chat("One.")), row(chat("Two.", weights={0: 0}), id="b", source="s:2")]
    tokens = tokenize(make_base(), rows)

    card = json.loads((tokens.path / "card.json").read_text())
    assert card["dropped"]["train"] == {"no answer to train": 1}
    assert card["dropped_rows"]["train"] == {
        "no answer to train": ["row b (s:2): all of its 1 answers have weight 0"]
    }


@pytest.mark.parametrize("arguments", ['{"place": "Łódź"}', {"place": "Łódź"}])
def test_tool_calls_are_trained_up_to_their_end(
    make_base: Any, tokenize: Any, arguments: Any
) -> None:
    """Files hold arguments as a string of JSON or as an object; the template writes both alike."""
    base = make_base("byte", "qwen2_5", bos=None, eos="<|im_end|>")
    tokens = tokenize(base, [row(tool_messages(arguments), tools=WEATHER)])

    assert trained(tokens.path, base) == [
        '<tool_call>\n{"name": "weather", "arguments": {"place": "Łódź"}}\n</tool_call><|im_end|>',
        "It rains.<|im_end|>",
    ]
    text = Chat(base.path).decode(
        pq.read_table(tokens.path / "train.parquet").to_pylist()[0]["input_ids"]
    )
    assert "The weather of a place" in text
    assert "None" not in text


def test_the_reference_of_a_row_that_ends_with_a_call_is_the_call(
    make_base: Any, tokenize: Any
) -> None:
    base = make_base("byte", "llama3_1", bos="<|begin_of_text|>", eos="<|eot_id|>")
    tokens = tokenize(base, [row(tool_messages()[:2], tools=WEATHER)])

    (read,) = pq.read_table(tokens.path / "train.parquet").to_pylist()
    assert read["reference"] == '{"name": "weather", "parameters": {"place": "Łódź"}}'
    assert trained(tokens.path, base) == [read["reference"] + "<|eot_id|>"]


def test_a_template_that_passes_over_a_message_is_refused(make_base: Any, tokenize: Any) -> None:
    """Phi-3's knows no tools, and says nothing."""
    with pytest.raises(DataError, match=r"does not write the call of the tool 'weather'"):
        tokenize(make_base(), [row(tool_messages()[:2])])
    messages = [{"role": "tool", "content": "17 degrees"}, *chat("Warm.")]
    with pytest.raises(DataError, match=r"leaves out messages\[0\] \(role tool\)"):
        tokenize(make_base(), [row(messages)])


def test_tools_that_a_template_does_not_show_are_counted(make_base: Any, tokenize: Any) -> None:
    tokens = tokenize(make_base(), [row(chat("One."), tools=WEATHER)])

    card = json.loads((tokens.path / "card.json").read_text())
    assert card["changed"]["train"] == {"tools that the chat template does not show": 1}


def test_rejected_answers_play_no_part(make_base: Any, tokenize: Any) -> None:
    base = make_base()
    plain = tokenize(base, [row(chat("One."))])
    pair = tokenize(base, [row(chat("One."), rejected=[{"role": "assistant", "content": "No."}])])

    assert pq.read_table(pair.path / "train.parquet").equals(
        pq.read_table(plain.path / "train.parquet")
    )


@pytest.mark.parametrize(
    ("template", "kind", "bos", "eos"),
    [
        ("phi3_training", "phi", "<s>", "<|endoftext|>"),
        ("qwen2_5_training", "byte", None, "<|im_end|>"),
        ("llama3_training", "byte", "<|begin_of_text|>", "<|eot_id|>"),
    ],
)
def test_the_mask_is_that_of_a_template_with_generation_marks(
    make_base: Any, tokenize: Any, template: str, kind: str, bos: str | None, eos: str
) -> None:
    """transformers reads the marks; nothing here does. What a mark includes behind the end of the
    turn is the one difference: a model has stopped by then.
    """
    from transformers import PreTrainedTokenizerFast

    base = make_base(kind, template, bos=bos, eos=eos)
    messages = chat("One\n  two.", "Ω 🙂", "Three.")
    tokens = tokenize(base, [row(messages)])
    theirs = PreTrainedTokenizerFast.from_pretrained(base.path).apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )

    (read,) = pq.read_table(tokens.path / "train.parquet").to_pylist()
    ours = [label != UNTRAINED for label in read["labels"]]
    differing = [
        Chat(base.path).decode([token])
        for token, a, b in zip(read["input_ids"], ours, theirs["assistant_masks"], strict=True)
        if a != bool(b)
    ]
    assert read["input_ids"] == theirs["input_ids"]
    assert set(differing) <= {"\n", "<|endoftext|>"}


def test_a_token_for_the_beginning_is_written_once(make_base: Any, tokenize: Any) -> None:
    """The template writes it and the tokenizer would add it; a template that writes two is refused."""
    base = make_base("mistral", "mixtral", bos="<s>", eos="</s>")
    tokens = tokenize(base, [row(chat("One.")[1:])])

    (read,) = pq.read_table(tokens.path / "train.parquet").to_pylist()
    assert read["input_ids"].count(Chat(base.path).bos_id) == 1

    source = Chat(base.path).source
    doubled = make_base("mistral", "{{ bos_token }}" + source, bos="<s>", eos="</s>")
    with pytest.raises(DataError, match="writes the token for the beginning twice"):
        tokenize(doubled, [row(chat("One.")[1:])])
