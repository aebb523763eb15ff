"""A row of the dataset: a conversation or a text, where it came from, and which rows it belongs with."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Message = dict[str, Any]
"""`{"role": "system" | "user" | "assistant" | "tool", "content": text}`, and where the data has them
`tool_calls`, `tool_call_id`, `name` and `weight` (0: this answer is not trained)."""


@dataclass(frozen=True)
class Row:
    """A conversation that ends with the assistant's turn, or a text that is nobody's answer."""

    messages: tuple[Message, ...]
    """Empty where the row is a text."""
    group: str
    """Rows of one group are never divided between train and test."""
    source: str
    """Where a person finds it: `file:line`, without the folder, which differs between machines."""
    label: str | None = None
    """A trivial answer that evaluation compares with: a function's name as words."""
    tools: tuple[dict[str, Any], ...] = ()
    """JSON schemas of the functions that the assistant may call, as the chat template wants them."""
    rejected: tuple[Message, ...] = ()
    """The worse ending of a preference pair, instead of the last answer; kept for preference training."""
    desirable: bool | None = None
    """Whether the last answer was judged good, where the data has a verdict on each answer by itself."""
    time: str | None = None
    """When the row was made, ISO 8601 in UTC; for a split by time."""
    slice: str | None = None
    """The part of the data that the card counts it under, for example a language or a product."""
    text: str | None = None
    """A text to be trained whole, without a chat template; there are no messages then."""

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits that depend on what the row teaches: its messages or its text, and
        where there are any its tools, its rejected ending and the verdict on its answer.
        """
        said = self.messages if self.text is None else self.text
        beside = {"tools": self.tools, "rejected": self.rejected}
        told: dict[str, Any] = {name: value for name, value in beside.items() if value}
        if self.desirable is not None:
            told["desirable"] = self.desirable
        return short_hash(_json([said, told] if told else said))

    @property
    def prompt(self) -> str | None:
        """Everything before the last answer, exactly as written; a text has none."""
        return _json(self.messages[:-1]) if self.text is None else None

    @property
    def answer(self) -> str:
        """What is learned: the assistant's last turn, or the text."""
        return str(self.messages[-1]["content"]) if self.text is None else self.text


def short_hash(text: str) -> str:
    """16 hexadecimal digits of the text's sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompt_group(messages: Iterable[Message]) -> str:
    """The default group: what was said before the first answer, without case and layout.

    Conversations that share their beginning stay together, so no test prompt is the beginning of
    a training row.
    """
    before: list[str] = []
    for message in messages:
        if message["role"] == "assistant":
            break
        before.append(" ".join(message["content"].split()).casefold())
    return "prompt-" + short_hash("\n".join(before))


def text_group(text: str) -> str:
    """The default group of a text: itself, without case and layout."""
    return "text-" + short_hash(" ".join(text.split()).casefold())


def default_group(messages: Iterable[Message], text: str | None) -> str:
    """The group of a row whose source names none."""
    return prompt_group(messages) if text is None else text_group(text)


# Made once: `json.dumps` would make one for each row. Its form is part of every row's id.
_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode
