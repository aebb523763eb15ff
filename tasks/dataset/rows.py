"""A row of the dataset: one conversation, where it came from, and which rows it belongs with."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from tasks.errors import DataError

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""

SHOWN_BAD_ROWS = 20


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
        return self.messages[-1]["content"]


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


class BadRows:
    """Collects every bad row of all sources, so that one error shows them together."""

    def __init__(self) -> None:
        self.count = 0
        self._shown: list[str] = []

    def add(self, where: str, reason: str) -> None:
        """Remember a bad row; `where` is `file:line`."""
        self.count += 1
        if len(self._shown) < SHOWN_BAD_ROWS:
            self._shown.append(f"{where}: {reason}")

    def raise_if_any(self) -> None:
        """Raise DataError with the first rows and the number of all."""
        if not self.count:
            return
        head = "1 row is wrong:" if self.count == 1 else f"{self.count} rows are wrong:"
        more = self.count - len(self._shown)
        lines = [head, *(f"  {line}" for line in self._shown)]
        if more:
            lines.append(f"  ... and {more} more")
        lines.append("Correct them or take them out; nothing was prepared.")
        raise DataError("\n".join(lines))
