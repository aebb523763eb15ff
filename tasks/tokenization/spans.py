"""Which tokens of a conversation carry the loss: every answer with the token that ends its turn.

For each assistant turn k the template is rendered twice: the messages before it with the next turn
opened (what the model is given at inference), and the whole conversation (what it is trained on).
The first must be a prefix of the second, as text and token for token. Trained is what the model has
to write itself: from the end of that prefix up to and with the first special token after the answer
(`<|end|>`, `<|eot_id|>`, `<|im_end|>`, `</s>`, ...). What a template writes after that token (a line
break, Phi-3's `<|endoftext|>` at the very end) is no part of the turn and is not trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from tasks.tokenization.chat import Chat, Message

UNTRAINED = -100
"""The label that PyTorch's cross entropy ignores."""


class Unfit(Exception):
    """Why a conversation cannot be trained on with this template."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text."""

    text: str
    prompts: tuple[str, ...]
    """What the model is given before each of its turns; prefixes of `text`."""
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids."""

    input_ids: list[int]
    spans: tuple[tuple[int, int], ...]
    """Trained positions `[start, stop)`, one span for each assistant turn."""

    @property
    def labels(self) -> list[int]:
        """`input_ids` where trained, `UNTRAINED` elsewhere; same length."""
        labels = [UNTRAINED] * len(self.input_ids)
        for start, stop in self.spans:
            labels[start:stop] = self.input_ids[start:stop]
        return labels

    @property
    def prompt_length(self) -> int:
        """Tokens before the last answer: the generation prompt."""
        return self.spans[-1][0]


def render(chat: Chat, messages: list[Message]) -> Rendered:
    """The conversation and the prompt of each of its answers.

    Raises: Unfit when the template refuses it, or writes a prompt that the conversation does not
    begin with.
    """
    turns = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    try:
        text = chat.render(messages)
        prompts = [chat.render(messages[:k], generation_prompt=True) for k in turns]
    except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
        raise Unfit(f"the chat template refuses it: {error}") from error
    for k, prompt in zip(turns, prompts, strict=True):
        if not text.startswith(prompt):
            raise Unfit(
                f"the template writes the conversation before messages[{k}] differently when an "
                "answer is to be generated: a model trained on one text would be asked with another"
            )
    return Rendered(text, tuple(prompts), tuple(messages[k]["content"] for k in turns))


def encode(chat: Chat, rows: Sequence[Rendered]) -> list[Encoded | Unfit]:
    """Token ids and trained spans; a row that cannot be trained on gives an Unfit in its place."""
    texts = [text for row in rows for text in (row.text, *row.prompts)]
    ids = iter(chat.encode(texts))
    return [_encoded(chat, row, next(ids), [next(ids) for _ in row.prompts]) for row in rows]


def _encoded(
    chat: Chat, row: Rendered, ids: list[int], prompts: list[list[int]]
) -> Encoded | Unfit:
    spans = []
    try:
        # Each turn ends before the prompt of the next one does.
        ends = [*map(len, row.prompts[1:]), len(row.text)]
        for text, end, answer, prompt in zip(row.prompts, ends, row.answers, prompts, strict=True):
            start = len(prompt)
            if ids[:start] != prompt:
                raise Unfit(
                    "the tokens of the prompt are not the first tokens of the row: the answer "
                    f"begins with {answer[:12]!r}, which melts into the template's text. "
                    "Remove the white space at the beginning of the answer"
                )
            specials = _specials_through_turn(chat, row.text[len(text) : end], answer)
            spans.append((start, _after_special(chat, ids, start, specials)))
    except Unfit as problem:
        return problem
    return Encoded(ids, tuple(spans))


def _specials_through_turn(chat: Chat, text: str, answer: str) -> list[str]:
    """The special tokens that the template writes from the prompt's end to the turn's, in order.

    The last of them ends the turn: it stands right behind the answer. `text` begins where the
    prompt ends. Most templates write one; gpt-oss opens a channel first.
    """
    # Templates of Llama 3 and Gemma trim what they are given.
    wanted = answer.strip()
    found: list[str] = []
    for match in chat.special_pattern.finditer(text):
        found.append(match[0])
        if text[: match.start()].rstrip().endswith(wanted):
            return found
    if wanted in text:
        raise Unfit(
            "no special token ends the assistant's turn in this template, so that a model could "
            "not learn to stop. Choose a base whose chat template ends turns with a special token"
        )
    raise Unfit("the template changes the answer: it does not stand in the rendered text")


def _after_special(chat: Chat, ids: list[int], start: int, specials: list[str]) -> int:
    """Position behind the special token that ends the turn."""
    position = start
    for special in specials:
        while position < len(ids) and ids[position] not in chat.special_ids:
            position += 1
        if position == len(ids) or chat.tokenizer.id_to_token(ids[position]) != special:
            raise Unfit(f"the tokenizer does not read {special!r} as one token where it stands")
        position += 1
    return position
