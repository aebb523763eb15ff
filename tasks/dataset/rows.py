"""A row of the dataset: one conversation, where it came from, and which rows it belongs with."""

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
    """A conversation that ends with the assistant's turn."""

    messages: tuple[Message, ...]
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
    time: str | None = None
    """When the row was made, ISO 8601 in UTC; for a split by time."""
    slice: str | None = None
    """The part of the data that the card counts it under, for example a language or a product."""

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits that depend on the messages only."""
        return short_hash(json.dumps(self.messages, ensure_ascii=False, sort_keys=True))

    @property
    def prompt(self) -> str:
        """Everything before the last answer, exactly as written."""
        return json.dumps(self.messages[:-1], ensure_ascii=False, sort_keys=True)

    @property
    def answer(self) -> str:
        """The assistant's last turn."""
        return str(self.messages[-1]["content"])


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
