"""A row's messages as the template gets them, and which of its answers are trained."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from tasks.tokenization.chat import Chat, Message

TrainOn = Literal["assistant", "last_assistant", "all"]

MARK = "\ufdd0"
"""Breaks the text of a control token that a person typed (a noncharacter, for a program's own use).

It stands in the messages and in the rendered text, never among the token ids nor in what is stored.
"""


class Skipped(Exception):
    """Why a row is left out, and under which reason it is counted."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(reason, what)
        self.reason = reason
        self.what = what


CONTROL = "control token in the text"
NOT_TRAINED = "no answer to train"


@dataclass(frozen=True)
class Conversation:
    """Messages, and what of them is trained."""

    messages: list[Message]
    """Ends with the last trained answer: nothing after it could change what is learned."""
    trained: tuple[int, ...]
    """Indices of the answers that are trained; at least one."""
    tools: list[Any] | None = None
    everything: bool = False
    """Whether the prompts are trained too (`train_on: all`)."""
    marked: bool = False
    """Whether texts of control tokens were broken by `MARK`."""


def conversation(chat: Chat, row: dict[str, Any], train_on: TrainOn) -> Conversation:
    """The row's conversation.

    Keys that are null are left out, arguments of tool calls become objects (what templates expect),
    and a control token's text in what others than the assistant say is broken by `MARK`.

    Raises: Skipped when no answer is trained, or when the assistant's own words, or the tools, hold
    a control token's text: trained on it, the model would learn to write a token's text as words.
    """
    messages = [_cleaned(message) for message in row["messages"]]
    answers = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    trained = [k for k in answers if row["messages"][k].get("weight") != 0]
    if not trained:
        raise Skipped(NOT_TRAINED, f"all of its {len(answers)} answers have weight 0")
    if train_on == "last_assistant":
        trained = trained[-1:]
    messages = messages[: trained[-1] + 1]
    tools = row.get("tools") or None
    marked = _mark(chat, messages, tools)
    return Conversation(messages, tuple(trained), tools, train_on == "all", marked)


def without_leading_space(given: Conversation) -> Conversation:
    """The conversation with its trained answers stripped at their beginning."""
    messages = [
        {**message, "content": message["content"].lstrip()} if k in given.trained else message
        for k, message in enumerate(given.messages)
    ]
    return replace(given, messages=messages)


def mark(chat: Chat, text: str) -> str:
    """`text` with every control token's text broken by `MARK`.

    Raises: Skipped when that is not possible.
    """
    if MARK in text:
        raise Skipped(CONTROL, "holds the noncharacter U+FDD0")
    return _broken(chat, text)


def unmarked(text: str) -> str:
    """`text` as the data has it."""
    return text.replace(MARK, "")


def _cleaned(message: Message) -> Message:
    if len(message) == 2 and message.get("content") is not None:
        return dict(message)
    kept = {key: value for key, value in message.items() if value is not None and key != "weight"}
    # Templates add strings; a message that only calls a tool has none.
    kept.setdefault("content", "")
    if calls := kept.pop("tool_calls", None):
        kept["tool_calls"] = [_call(call) for call in calls]
    return kept


def _call(call: Any) -> Any:
    """OpenAI's files hold arguments as a string of JSON; templates write an object as JSON."""
    if not isinstance(call, dict):
        return call
    if isinstance(function := call.get("function"), dict):
        return {**call, "function": _call(function)}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except ValueError:
            return call
        if isinstance(parsed, dict):
            return {**call, "arguments": parsed}
    return call


def _mark(chat: Chat, messages: list[Message], tools: list[Any] | None) -> bool:
    """Break control tokens' texts in place; whether there was any."""
    marked = False
    for k, message in enumerate(messages):
        own = message["role"] == "assistant"
        # The assistant may write added tokens that are not special, such as those of a think block.
        pattern = chat.special_pattern if own else chat.control_pattern
        content = message["content"]
        if MARK in content:
            raise Skipped(CONTROL, f"messages[{k}] holds the noncharacter U+FDD0")
        found = pattern.search(content)
        if found and not own:
            message["content"] = _broken(chat, content)
            marked = True
            found = None
        if len(message) > 2:
            others = (
                text
                for key, value in message.items()
                if key != "content"
                for text in _strings(value)
            )
            found = found or next(filter(None, map(pattern.search, others)), None)
        if found:
            raise Skipped(CONTROL, f"messages[{k}] ({message['role']}) holds {found[0]}")
    for text in _strings(tools):
        if MARK in text or (found := chat.control_pattern.search(text)):
            raise Skipped(CONTROL, "its tools hold a control token's text")
    return marked


def _broken(chat: Chat, text: str) -> str:
    while found := chat.control_pattern.search(text):
        if len(found[0]) == 1:
            raise Skipped(CONTROL, f"holds {found[0]!r}, which the tokenizer takes for a token")
        place = found.start() + 1
        text = text[:place] + MARK + text[place:]
    return text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
