"""Change the text of a row everywhere that a model would see it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tasks.dataset.rows import Message, Row, default_group


def rewritten(row: Row, change: Callable[[str], str]) -> Row:
    """The row with `change` applied to every text that it holds; the same object if nothing changed.

    Tool calls and the rejected ending are part of it; roles and names of fields are not. A row
    whose group is the default, its prompt or its text, gets the group of what it says now: rows
    that become equal must stay on one side of the split.
    """
    messages = tuple(_message(message, change) for message in row.messages)
    rejected = tuple(_message(message, change) for message in row.rejected)
    text = change(row.text) if row.text is not None else None
    if (messages, rejected, text) == (row.messages, row.rejected, row.text):
        return row
    by_default = row.group == default_group(row.messages, row.text)
    return replace(
        row,
        messages=messages,
        rejected=rejected,
        text=text,
        group=default_group(messages, text) if by_default else row.group,
    )


def texts(row: Row) -> list[str]:
    """Every text that `rewritten` would change, in order."""
    found: list[str] = []

    def collect(text: str) -> str:
        found.append(text)
        return text

    for message in (*row.messages, *row.rejected):
        _message(message, collect)
    if row.text is not None:
        found.append(row.text)
    return found


def _message(message: Message, change: Callable[[str], str]) -> Message:
    return {
        key: value if key == "role" else _inside(value, change) for key, value in message.items()
    }


def _inside(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_inside(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _inside(item, change) for key, item in value.items()}
    return value
