"""The chat formats that a row may have, and which one it has."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tasks.dataset.reading.conversations import (
    Conversation,
    from_conversations,
    from_instances,
    from_instruction,
    from_messages,
    from_prompt,
    from_text,
    instances_group,
)
from tasks.dataset.reading.preferences import (
    from_judged,
    from_preference,
    from_two_conversations,
    refuse_unread_verdict,
    says_verdict,
)
from tasks.dataset.reading.problem import RowProblem


@dataclass(frozen=True)
class Format:
    """A way to write conversations as objects or rows of a table."""

    name: str
    columns: tuple[str, ...]
    """A row of this format has them all."""
    wants: str
    """The columns in words, for messages."""
    shows: dict[str, str]
    """Part of a conversation -> the columns it is made of, as the card shows it."""
    read: Callable[[dict[str, Any], set[str]], list[Conversation]]
    """A row's conversations without the columns `system` and `tools`, and the keys of its turns that are
    not read; raises RowProblem."""
    optional: tuple[str, ...] = ()
    group: Callable[[dict[str, Any]], str] | None = None
    """The row's default group where it is not the prompt."""
    forbidden: tuple[str, ...] = ()
    """A row with one of these columns has another format."""
    only: Callable[[dict[str, Any]], bool] = lambda row: True
    """Whether a row with these columns has this format by what they hold."""
    unread: Callable[[dict[str, Any], str], None] | None = None
    """Raises RowProblem for a row that says more than the format reads; told since which row it is read so."""


def format_of(row: dict[str, Any]) -> Format:
    """The one format whose columns the row has.

    Raises: RowProblem when there is none, or more than one.
    """
    fitting = [form for form in FORMATS if _fits(form, row)]
    if len(fitting) == 1:
        return fitting[0]
    seen = f"columns here: {', '.join(map(str, row)) or 'none'}."
    if not fitting:
        if "text" in row:
            beside = ", ".join(column for column in row if column in NOT_BESIDE_TEXT)
            raise RowProblem(
                f"is `text` all that is to be learned here, or what stands beside it ({beside})? "
                "`chat_format: text` trains the text alone and whole; `columns: {user: "
                f'"{{{{ text }}}}", assistant: ...}}` makes it a prompt; {seen}'
            )
        raise RowProblem(f"unknown format; {seen}")
    names = " and ".join(form.name for form in fitting)
    raise RowProblem(
        f"the columns fit {names}; keep those of one format, or name it by chat_format; {seen}"
    )


def format_named(name: str) -> Format:
    """The format of a name, which the recipe's settings have checked."""
    return next(form for form in FORMATS if form.name == name)


def _fits(form: Format, row: dict[str, Any]) -> bool:
    return (
        all(column in row for column in form.columns)
        and not any(column in row for column in form.forbidden)
        and form.only(row)
    )


NOT_BESIDE_TEXT = (
    *("messages", "conversations", "prompt", "completion", "instruction", "instances", "chosen"),
    *("rejected", "input", "output", "question", "answer", "answers", "response", "completions"),
    *("label", "labels", "target", "summary", "user", "assistant", "system"),
)
"""Columns that are as likely what the text is there for: a classifier's label, a summary."""

FORMATS = (
    Format(
        "messages",
        ("messages",),
        "a list of {role, content}",
        {"turns": "messages"},
        from_messages,
        optional=("tools", "system"),
    ),
    Format(
        "conversations",
        ("conversations",),
        "a list of {from, value}",
        {"turns": "conversations"},
        from_conversations,
        optional=("tools", "system"),
    ),
    Format(
        "prompt/completion",
        ("prompt", "completion"),
        "two texts",
        {"user": "prompt", "assistant": "completion"},
        from_prompt,
        optional=("tools", "system"),
        only=lambda row: not says_verdict(row),
        unread=refuse_unread_verdict,
    ),
    Format(
        "prompt/completion/label",
        ("prompt", "completion", "label"),
        "two texts, and true or false for a good or a bad answer",
        {"user": "prompt", "assistant": "completion", "desirable": "label"},
        from_judged,
        optional=("tools", "system"),
        only=says_verdict,
    ),
    Format(
        "instruction/output",
        ("instruction", "output"),
        "two texts and an optional input",
        {"user": "instruction", "assistant": "output"},
        from_instruction,
        optional=("input", "system"),
    ),
    Format(
        "instruction/instances",
        ("instruction", "instances"),
        "a text and a list of {input, output}",
        {"user": "instruction + instances[].input", "assistant": "instances[].output"},
        from_instances,
        optional=("system",),
        group=instances_group,
    ),
    Format(
        "prompt/chosen/rejected",
        ("prompt", "chosen", "rejected"),
        "a question and two answers, the better one first",
        {"user": "prompt", "assistant": "chosen", "rejected": "rejected"},
        from_preference,
        optional=("tools", "system"),
    ),
    Format(
        "chosen/rejected",
        ("chosen", "rejected"),
        "two lists of {role, content} that differ in their end",
        {"turns": "chosen", "rejected": "rejected"},
        from_two_conversations,
        optional=("tools", "system"),
        forbidden=("prompt",),
    ),
    Format(
        "text",
        ("text",),
        "a text to be learned whole, without roles",
        {"text": "text"},
        from_text,
        forbidden=NOT_BESIDE_TEXT,
    ),
)
WAYS_OUT = (
    "Known formats are "
    + "; ".join(f"{form.name} ({form.wants})" for form in FORMATS)
    + '. For anything else say how a row becomes a conversation: `columns: {user: "{{ question }}", '
    'assistant: "{{ answer }}"}` in the recipe\'s source.'
)
