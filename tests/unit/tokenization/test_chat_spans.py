import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tasks.base import Base
from tasks.errors import BaseModelError
from tasks.tokenization.chat import Chat
from tasks.tokenization.conversation import Conversation
from tasks.tokenization.encoder import Encoder
from tasks.tokenization.rendering import Rendered, Unfit, render
from tasks.tokenization.spans import UNTRAINED, Encoded, SpanEncoder

Messages = list[dict[str, str]]

ANSWERS = [
    "Return the sum of the two numbers.",
    "Zeile eins\n    eingerückt\n\n\nΩ 漢字 🙂 the end",
    "x",
    "A long  run   of spaces, a tab\tand <html> | {braces}",
]


@dataclasses.dataclass(frozen=True)
class Case:
    """A template, the tokenizer kind it runs on, and the token that ends its turns."""

    template: str
    kind: str
    end: str
    bos: str | None = "<s>"
    eos: str = "<|endoftext|>"
    system: bool = True
    before: str = ""
    """What the template itself writes before each answer."""
    before_last: str = ""
    """The same for the last answer alone."""


CASES = {
    "phi3": Case("phi3", "phi", "<|end|>"),
    "phi3_5": Case("phi3_5", "phi", "<|end|>"),
    "phi3_training": Case("phi3_training", "phi", "<|end|>"),
    "llama3": Case("llama3", "byte", "<|eot_id|>", "<|begin_of_text|>", "<|eot_id|>"),
    "llama3_1": Case("llama3_1", "byte", "<|eot_id|>", "<|begin_of_text|>", "<|eot_id|>"),
    "llama3_2": Case("llama3_2", "byte", "<|eot_id|>", "<|begin_of_text|>", "<|eot_id|>"),
    "qwen2_5": Case("qwen2_5", "byte", "<|im_end|>", None, "<|im_end|>"),
    "qwen3": Case(
        "qwen3", "byte", "<|im_end|>", None, "<|im_end|>", before_last="<think>\n\n</think>\n\n"
    ),
    "qwen2_5_training": Case("qwen2_5_training", "byte", "<|im_end|>", None, "<|im_end|>"),
    "llama3_training": Case(
        "llama3_training", "byte", "<|eot_id|>", "<|begin_of_text|>", "<|eot_id|>"
    ),
    "chatml": Case("chatml", "byte", "<|im_end|>", None, "<|im_end|>"),
    "phi4": Case("phi4", "byte", "<|im_end|>", "<|endoftext|>", "<|im_end|>"),
    "phi4_release": Case("phi4_release", "byte", "<|im_end|>", "<|endoftext|>", "<|im_end|>"),
    "gemma": Case("gemma", "gemma", "<end_of_turn>", "<bos>", "<eos>", system=False),
    "gemma_training": Case(
        "gemma_training", "gemma", "<end_of_turn>", "<bos>", "<eos>", system=False
    ),
    "gemma3": Case("gemma3", "gemma", "<end_of_turn>", "<bos>", "<eos>"),
    "mistral": Case("mistral", "mistral", "</s>", "<s>", "</s>", system=False),
    "mixtral": Case("mixtral", "mistral", "</s>", "<s>", "</s>", system=False),
}


def conversation(*answers: str, system: bool = False) -> Messages:
    messages = [{"role": "system", "content": "Be brief."}] if system else []
    for i, answer in enumerate(answers):
        messages.append({"role": "user", "content": f"Question {i}:\n\n  the <b>code</b>?"})
        messages.append({"role": "assistant", "content": answer})
    return messages


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    value = request.param
    assert isinstance(value, Case)
    return value


@pytest.fixture
def base(case: Case, make_base: Any) -> Base:
    result = make_base(case.kind, case.template, bos=case.bos, eos=case.eos)
    assert isinstance(result, Base)
    return result


def rendered(chat: Chat, messages: Messages) -> Rendered:
    answers = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    return render(chat, Conversation(messages, tuple(answers)))


def encoded(chat: Chat, messages: Messages) -> Encoded:
    (result,) = SpanEncoder(chat, Encoder(chat, "tokenizers")).encode([rendered(chat, messages)])
    if isinstance(result, Unfit):
        raise result
    return result


def conversations(case: Case) -> list[Messages]:
    some = [conversation(answer) for answer in ANSWERS]
    some.append(conversation(*ANSWERS))
    if case.system:
        some += [conversation(ANSWERS[0], system=True), conversation(*ANSWERS[:2], system=True)]
    return some


def test_the_mask_decodes_to_exactly_the_answers_plus_end_of_turn(case: Case, base: Base) -> None:
    chat = Chat(base.path)
    for messages in conversations(case):
        row = encoded(chat, messages)
        answers = [m["content"] for m in messages if m["role"] == "assistant"]

        expected = [case.before + answer + case.end for answer in answers]
        expected[-1] = case.before_last + expected[-1]
        assert [
            chat.decode(row.input_ids[start:stop].tolist()) for start, stop in row.spans
        ] == expected

        inside = {i for start, stop in row.spans for i in range(start, stop)}
        for i, (token, label) in enumerate(zip(row.input_ids, row.labels, strict=True)):
            assert label == (token if i in inside else UNTRAINED)


def test_the_token_ids_are_those_of_transformers(case: Case, base: Base) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(base.path)
    chat = Chat(base.path)
    for messages in conversations(case):
        # The date is fixed in ours; given explicitly, it is the same in both.
        date = {"date_string": "26 Jul 2024"}
        whole = theirs.apply_chat_template(messages, tokenize=True, return_dict=True, **date)
        prompt = theirs.apply_chat_template(
            messages[:-1], tokenize=True, return_dict=True, add_generation_prompt=True, **date
        )
        row = encoded(chat, messages)

        assert row.input_ids.tolist() == whole["input_ids"]
        assert row.input_ids[: row.prompt_length].tolist() == prompt["input_ids"]


def test_no_row_begins_with_two_tokens_for_the_beginning(case: Case, base: Base) -> None:
    chat = Chat(base.path)
    ids = encoded(chat, conversation(ANSWERS[0])).input_ids.tolist()

    if case.bos is not None:
        assert ids.count(chat.tokenizer.token_to_id(case.bos)) <= 1


def test_the_starter_and_transformers_agree(starter: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(starter)
    chat = Chat(starter)
    for messages in [conversation(answer, system=True) for answer in ANSWERS] + [
        conversation(*ANSWERS),
        conversation("  leading and trailing white space \n"),
        conversation("</s> <b> ▁ é \u200b"),
    ]:
        ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]

        assert encoded(chat, messages).input_ids.tolist() == ids


def test_phi_3_ends_with_an_untrained_end_of_text(make_base: Any) -> None:
    chat = Chat(make_base().path)
    row = encoded(chat, conversation("Yes."))

    assert chat.decode(row.input_ids[-2:].tolist()) == "<|end|><|endoftext|>"
    assert row.labels[-2:].tolist() == [chat.tokenizer.token_to_id("<|end|>"), UNTRAINED]


def test_white_space_that_a_special_token_swallows_is_not_missed(make_base: Any) -> None:
    """Phi-3's `<|assistant|>` strips what follows it, so the answer's own indentation goes too."""
    chat = Chat(make_base().path)
    row = encoded(chat, conversation("   indented\n"))
    (start, stop) = row.spans[0]

    assert chat.decode(row.input_ids[start:stop].tolist()) == "indented\n<|end|>"


def test_a_template_that_trims_answers_trains_the_trimmed_answer(make_base: Any) -> None:
    chat = Chat(make_base("byte", "llama3", bos="<|begin_of_text|>", eos="<|eot_id|>").path)
    row = encoded(chat, conversation("\n\n  Yes. \n"))
    (start, stop) = row.spans[0]

    assert chat.decode(row.input_ids[start:stop].tolist()) == "Yes.<|eot_id|>"


def test_an_answer_that_melts_into_the_prompt_is_refused(make_base: Any) -> None:
    """ChatML writes a line break before the answer; with the answer's own it becomes one token."""
    chat = Chat(make_base("byte", "qwen2_5", bos=None, eos="<|im_end|>").path)

    with pytest.raises(Unfit, match="melts into the template's text"):
        encoded(chat, conversation("\nYes."))


def test_a_template_without_an_end_of_turn_is_refused(make_base: Any) -> None:
    plain = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}### assistant:\n{% endif %}"
    )
    chat = Chat(make_base(template=plain).path)

    with pytest.raises(Unfit, match="no special token ends the assistant's turn"):
        encoded(chat, conversation("Yes."))


def test_a_template_that_changes_the_answer_is_refused(make_base: Any) -> None:
    chat = Chat(
        make_base(
            template="{% for m in messages %}<|{{ m.role }}|>{{ m.content | upper if m.role == 'assistant' "
            "else m.content }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}"
        ).path
    )

    with pytest.raises(Unfit, match="changes the answer"):
        encoded(chat, conversation("Yes."))


def test_a_template_that_asks_with_another_text_than_it_trains_is_refused(make_base: Any) -> None:
    """DeepSeek-R1's opens a think block when an answer is to be generated, and only then."""
    chat = Chat(make_base("byte", "deepseek_r1_distill", bos="<bos>").path)

    with pytest.raises(Unfit, match=r"before messages\[1\] differently"):
        rendered(chat, conversation("Yes."))


def test_what_a_template_refuses_is_passed_on_in_its_words(make_base: Any) -> None:
    chat = Chat(make_base("byte", "gemma", bos="<bos>").path)

    with pytest.raises(Unfit, match="the chat template refuses it: System role not supported"):
        rendered(chat, conversation("Yes.", system=True))


def test_a_truncation_left_in_the_tokenizer_file_cuts_nothing(make_base: Any) -> None:
    base = make_base()
    path = base.path / "tokenizer.json"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=100)
    tokenizer.save(str(path))

    row = encoded(Chat(base.path), conversation("A longer answer than five tokens."))

    assert 40 < len(row.input_ids) < 100


@pytest.mark.parametrize("place", ["config", "list"])
def test_a_template_in_the_tokenizer_config_is_found(make_base: Any, place: str) -> None:
    base = make_base()
    template = (base.path / "chat_template.jinja").read_text()
    (base.path / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]
    config = json.loads((base.path / "tokenizer_config.json").read_text())
    config["chat_template"] = named if place == "list" else template
    # Older files write a token as an object.
    config["eos_token"] = {"content": "<|endoftext|>", "lstrip": False}
    (base.path / "tokenizer_config.json").write_text(json.dumps(config))

    text = Chat(base.path).render(conversation("Yes."))

    assert text.endswith("Yes.<|end|>\n<|endoftext|>")


def test_a_base_without_a_template_is_refused_with_a_way_out(make_base: Any) -> None:
    base = make_base()
    (base.path / "chat_template.jinja").unlink()

    with pytest.raises(BaseModelError, match=r"no chat template\. Choose its instruction-tuned"):
        Chat(base.path)


def test_a_broken_template_is_refused(make_base: Any) -> None:
    base = make_base(template="{% for m in messages %}")

    with pytest.raises(BaseModelError, match="no valid Jinja"):
        Chat(base.path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_tokenizer_file_is_named(make_base: Any, name: str) -> None:
    base = make_base()
    (base.path / name).write_text("{")

    with pytest.raises(BaseModelError, match=name):
        Chat(base.path)


def test_a_template_cannot_reach_out_of_its_sandbox(make_base: Any) -> None:
    base = make_base(template="{{ messages.__class__.__mro__[1].__subclasses__() }}")

    with pytest.raises(Unfit, match="refuses it: access to attribute '__class__'"):
        rendered(Chat(base.path), conversation("Yes."))
