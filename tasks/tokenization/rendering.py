"""A conversation as text: the whole of it, and what the model is given before each trained answer.

For each trained answer k the template is rendered twice: the messages before it with the next turn
opened (what the model is given at inference), and the whole conversation (what it is trained on).
The first must be a prefix of the second. Trained is what the model has to write itself: from the end
of that prefix up to and with the special token that ends the turn (`<|end|>`, `<|eot_id|>`,
`<|im_end|>`, `</s>`, ...). What a template writes after that token (a line break, Phi-3's
`<|endoftext|>` at the very end) is no part of the turn and is not trained.
"""

import json
import re
from bisect import bisect_left
from itertools import pairwise
from typing import NamedTuple

import jinja2

from tasks.tokenization.chat import Chat, Message
from tasks.tokenization.conversation import Conversation, unmarked


class Unfit(Exception):
    """Why a conversation cannot be trained on with this template."""


class Turn(NamedTuple):
    """A trained answer in the rendered text."""

    prompt: int
    """Characters before the answer: the generation prompt, a prefix of the text."""
    specials: int
    """Special tokens in that prompt."""
    last: int
    """Which of the text's special tokens ends the turn."""
    answer: str
    """As the data has it; for a turn that calls tools, as the template writes it."""


class Rendered(NamedTuple):
    """A conversation as text."""

    text: str
    specials: tuple[re.Match[str], ...]
    """Every special token in the text."""
    turns: tuple[Turn, ...]
    everything: bool = False
    """Whether the prompts are trained too."""
    marked: bool = False
    """Whether MARK stands in the text."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """What the model is given before each of its trained turns."""
        return tuple(self.text[: turn.prompt] for turn in self.turns)

    def written(self, turn: Turn) -> str:
        """What the model has to write in a turn, without the token that ends it."""
        return self.text[turn.prompt : self.specials[turn.last].start()]


def render(chat: Chat, given: Conversation) -> Rendered:
    """The conversation as text with its trained turns.

    Raises: Unfit when the template refuses it, leaves a message out or changes an answer, or writes a
    prompt that the conversation does not begin with.
    """
    messages, tools = given.messages, given.tools
    try:
        text = chat.render(messages, tools=tools)
        prompts = [
            chat.render(messages[:k], tools=tools, generation_prompt=True) for k in given.trained
        ]
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise Unfit(f"the chat template refuses it: {error}") from error
    _require_all(text, messages)
    specials = tuple(chat.special_pattern.finditer(text))
    ends = [found.end() for found in specials]
    turns = []
    for k, prompt in zip(given.trained, prompts, strict=True):
        if not text.startswith(prompt):
            raise Unfit(
                f"the template writes the conversation before messages[{k}] differently when an "
                "answer is to be generated: a model trained on one text would be asked with another"
            )
        # A special token that begins in the prompt and ends in the answer counts as the answer's.
        first = bisect_left(ends, len(prompt) + 1)
        turns.append(_turn(chat, messages[k], text, len(prompt), specials, first))
    for turn, after in pairwise(turns):
        if specials[turn.last].end() > after.prompt:
            raise Unfit("no special token ends an assistant's turn before the next prompt")
    return Rendered(text, specials, tuple(turns), given.everything, given.marked)


def _turn(
    chat: Chat,
    message: Message,
    text: str,
    prompt: int,
    specials: tuple[re.Match[str], ...],
    first: int,
) -> Turn:
    if message.get("tool_calls"):
        last = _end_of_calls(chat, message, text, prompt, specials, first)
        return Turn(prompt, first, last, unmarked(text[prompt : specials[last].start()]))
    last = _end_of_answer(message["content"], text, prompt, specials, first)
    return Turn(prompt, first, last, message["content"])


def _end_of_answer(
    answer: str, text: str, prompt: int, specials: tuple[re.Match[str], ...], first: int
) -> int:
    """The special token right behind the answer. Most templates write no other; gpt-oss opens a
    channel first.
    """
    # Templates of Llama 3 and Gemma trim what they are given.
    wanted = answer.strip()
    for k in range(first, len(specials)):
        start = specials[k].start()
        while start > prompt and text[start - 1].isspace():
            start -= 1
        if text.endswith(wanted, prompt, max(start, prompt)):
            return k
    if wanted in text[prompt:]:
        raise Unfit(
            "no special token ends the assistant's turn in this template, so that a model could "
            "not learn to stop. Choose a base whose chat template ends turns with a special token"
        )
    raise Unfit(
        "the template changes the answer: it does not stand in the rendered text. Where a template "
        "drops the reasoning of earlier answers, tokenization.train_on: last_assistant trains the "
        "last one alone"
    )


def _end_of_calls(
    chat: Chat,
    message: Message,
    text: str,
    prompt: int,
    specials: tuple[re.Match[str], ...],
    first: int,
) -> int:
    """The first special token, behind the name of the last tool called, at which generation stops."""
    place = prompt
    for call in message["tool_calls"]:
        name = (call.get("function") or call).get("name") if isinstance(call, dict) else None
        place = text.find(name, place) if isinstance(name, str) and name else -1
        if place < 0:
            raise Unfit(f"the template does not write the call of the tool {name!r}")
    for k in range(first, len(specials)):
        if specials[k].start() >= place and specials[k][0] in chat.stop_tokens:
            return k
    raise Unfit(
        "no token at which generation stops follows the tool calls in this template "
        f"(eos_token and generation_config.json name {', '.join(sorted(chat.stop_tokens)) or 'none'})"
    )


def _require_all(text: str, messages: list[Message]) -> None:
    """Some templates pass over the roles that they do not know, without a word."""
    for k, message in enumerate(messages):
        content = message["content"].strip()
        if message["role"] == "assistant" or content in text:
            continue
        if json.dumps(content, ensure_ascii=False)[1:-1] not in text:
            raise Unfit(
                f"the template leaves out messages[{k}] (role {message['role']}), or changes its text"
            )
