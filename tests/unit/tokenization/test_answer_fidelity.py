"""How an answer comes through template and tokenizer is compared, counted and told."""

import json
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, normalizers

from tasks.tokenization.chat import Chat
from tasks.tokenization.conversation import Conversation
from tasks.tokenization.encoder import Encoder
from tasks.tokenization.fidelity import Fidelity, Verdict
from tasks.tokenization.rendering import render
from tasks.tokenization.spans import Encoded, SpanEncoder
from tasks.tokenization.spelling import Spelling

CODE = "    def f(x):\n        return x\n"
EXACT = Verdict()


def verdict(chat: Chat, answer: str) -> Verdict:
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": answer}]
    rendered = render(chat, Conversation(messages, (1,)))
    (encoded,) = SpanEncoder(chat, Encoder(chat, "tokenizers")).encode([rendered])
    assert isinstance(encoded, Encoded)
    (found,) = Fidelity(chat).verdicts([(rendered, encoded)])
    return found


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", EXACT),
        ("Ω 漢字 🙂\n\n  and  more\t", EXACT),
        ("\nYes.", Verdict(trimmed=True)),
        ("  Yes.", Verdict(trimmed=True)),
        ("  Yes.\nNo.", Verdict(trimmed=True)),
        (CODE, Verdict(trimmed=True, unindented=True)),
        ("\n\n\tif x:\n\t\tpass", Verdict(trimmed=True, unindented=True)),
        ("```\n" + CODE + "```", EXACT),
        ("a ▁ b", Verdict(altered=True)),
    ],
)
def test_phi_3_loses_what_its_special_token_swallows(
    make_base: Any, answer: str, expected: Verdict
) -> None:
    assert verdict(Chat(make_base().path), answer) == expected


@pytest.mark.parametrize("answer", ["Yes.", CODE.strip(), "a ▁ b", "  Yes.", CODE])
def test_a_byte_level_tokenizer_carries_everything(make_base: Any, answer: str) -> None:
    assert verdict(Chat(make_base("byte", "chatml", bos=None).path), answer) == EXACT


def test_a_template_that_trims_is_told_from_a_tokenizer_that_swallows(make_base: Any) -> None:
    chat = Chat(make_base("byte", "llama3", bos="<|begin_of_text|>", eos="<|eot_id|>").path)

    assert verdict(chat, " Yes. ") == Verdict(trimmed=True)
    assert verdict(chat, CODE) == Verdict(trimmed=True, unindented=True)


def test_what_a_template_writes_before_an_answer_is_told(make_base: Any) -> None:
    chat = Chat(make_base("byte", "qwen3", bos=None, eos="<|im_end|>").path)

    assert verdict(chat, "Yes.") == Verdict(prefixed=True)


def test_a_tokenizer_that_normalises_is_told(make_base: Any) -> None:
    base = make_base("byte", "chatml", bos=None)
    path = base.path / "tokenizer.json"
    core = Tokenizer.from_file(str(path))
    core.normalizer = normalizers.NFKC()
    core.save(str(path))
    chat = Chat(base.path)

    assert verdict(chat, "five") == EXACT
    assert verdict(chat, "ﬁve") == Verdict(altered=True)


def test_a_decoder_of_another_kind_is_asked_itself(make_base: Any) -> None:
    base = make_base("byte", "chatml", bos=None)
    path = base.path / "tokenizer.json"
    core = Tokenizer.from_file(str(path))
    core.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("colour", "color")])
    core.save(str(path))
    chat = Chat(base.path)

    assert Spelling(chat).same([np.array(chat.encode(["a"])[0], np.int32)], ["a"]) == [False]
    assert verdict(chat, "a hue") == EXACT
    assert verdict(chat, "a colour") == Verdict(altered=True)


@pytest.mark.parametrize("kind", ["phi", "byte", "gemma", "mistral"])
def test_the_bytes_of_tokens_are_what_the_decoder_gives(make_base: Any, kind: str) -> None:
    chat = Chat(make_base(kind).path)
    texts = ["Ω 漢字 🙂\n\n  the  <b>\t\x01\x7f é", "", "the", "a" * 30]
    rows = [np.array(ids, np.int32) for ids in chat.encode(texts)]

    assert Spelling(chat).same(rows, [chat.decode(ids.tolist()) for ids in rows]) == [True] * 4


@pytest.mark.parametrize("kind", ["phi", "byte", "gemma"])
def test_one_other_byte_anywhere_is_found_in_its_own_row(make_base: Any, kind: str) -> None:
    """Tokens of one byte, of a word and of several words; the first and the last row, too."""
    base = make_base(kind)
    if kind != "phi":  # there, text behind an added token begins with one more space
        path = base.path / "tokenizer.json"
        core = Tokenizer.from_file(str(path))
        core.add_tokens(["eightlet", "seventeen_letters"])
        core.save(str(path))
    chat = Chat(base.path)
    texts = ["x eightlet", "the seventeen_letters é", "漢字", "plain"]
    rows = [np.array(ids, np.int32) for ids in chat.encode(texts)]
    spelling = Spelling(chat)
    assert spelling.same(rows, texts) == [True] * 4

    for k, text in enumerate(texts):
        for place, sign in enumerate(text):
            changed = [*texts]
            other = {1: "#", 2: "ß", 3: "書"}[len(sign.encode())]
            changed[k] = text[:place] + other + text[place + 1 :]
            assert spelling.same(rows, changed) == [row != k for row in range(4)]
            changed[k] = text[:place] + text[place + 1 :]
            assert not spelling.same(rows, changed)[k] or changed[k] == text.removeprefix(" ")


def test_crooked_code_is_counted_and_warned_about(
    make_base: Any, tokenize: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {
            "id": str(k),
            "group": "g",
            "messages": [
                {"role": "user", "content": "What?"},
                {"role": "assistant", "content": answer},
            ],
            "source": f"s:{k}",
            "label": None,
        }
        for k, answer in enumerate([CODE, "Yes.", "\nYes."])
    ]
    tokens = tokenize(make_base(), rows)

    card = json.loads((tokens.path / "card.json").read_text())
    assert card["trimmed_answers"]["train"] == 2
    assert card["unindented_answers"]["train"] == 1
    assert "1 train answers begin with an indented line" in caplog.text
    assert "indented code comes out crooked" in (tokens.path / "summary.md").read_text()
