"""Tokenize rows chunk by chunk, and deal with those that are too long or cannot be trained on."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tasks.errors import DataError
from tasks.tokenization.chat import Chat
from tasks.tokenization.settings import TokenizationSettings
from tasks.tokenization.spans import Encoded, Rendered, Unfit, encode, render

CHUNK = 2048
"""Rows encoded together: enough to keep every core busy, few enough to keep memory flat."""
SHOWN_ROWS = 20
MAX_CONTROL_SHARE = 0.01
"""A larger share of rows with control tokens in their text is no accident but a broken export."""

TOO_LONG = "longer than tokenization.max_length"
CONTROL = "control token in the text"
UNFIT = "cannot be trained on"


@dataclass(frozen=True)
class TokenRow:
    """One conversation, ready for training and for generation."""

    id: str
    encoded: Encoded
    prompt: str
    """What the model is given before the last answer."""
    reference: str
    """The last answer as the data has it."""
    answers: tuple[str, ...]
    """All answers of the conversation, the last one included."""
    label: str | None


@dataclass
class Drops:
    """How many rows were read, and which of them were left out for which reason."""

    side: str
    """`train` or `test`."""
    read: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first rows of each reason, as `row ID (source): what`."""

    def add(self, reason: str, row: dict[str, Any], what: str) -> None:
        """Count one row."""
        self.reasons[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < SHOWN_ROWS:
            shown.append(f"row {row['id']} ({row['source']}): {what}")

    def describe(self) -> str:
        """The counts in words."""
        parts = [f"{count:,} {reason}" for reason, count in sorted(self.reasons.items())]
        return ", ".join([f"{self.read:,} rows read", *parts])

    def listing(self, reason: str) -> str:
        """The first rows of a reason, one a line."""
        lines = [f"  {example}" for example in self.examples[reason]]
        more = self.reasons[reason] - len(lines)
        return "\n".join([*lines, f"  ... and {more:,} more"] if more else lines)


def tokenize(
    chat: Chat,
    rows: Iterable[dict[str, Any]],
    settings: TokenizationSettings,
    drops: Drops,
) -> Iterator[list[TokenRow]]:
    """Yield token rows in the order of `rows` (lines of the dataset's files), some at a time.

    `drops` is filled on the way. All rows are looked at before any is refused, so that one error
    names them all; what was yielded until then is void.

    Raises: DataError when rows cannot be trained on with this template, when rows are too long and
    `long_rows` is `error`, or when control tokens stand in the text of too many rows.
    """
    source = iter(rows)
    while chunk := list(islice(source, CHUNK)):
        drops.read += len(chunk)
        rendered = list(_rendered(chat, chunk, drops))
        results = encode(chat, [text for _, text in rendered])
        kept = []
        for (row, text), result in zip(rendered, results, strict=True):
            if isinstance(result, Unfit):
                drops.add(UNFIT, row, str(result))
            elif len(result.input_ids) > settings.max_length:
                drops.add(TOO_LONG, row, f"{len(result.input_ids):,} tokens")
            else:
                kept.append(
                    TokenRow(
                        id=row["id"],
                        encoded=result,
                        prompt=text.prompts[-1],
                        reference=text.answers[-1],
                        answers=text.answers,
                        label=row["label"],
                    )
                )
        if kept:
            yield kept
    _refuse(drops, settings)


def _rendered(
    chat: Chat, rows: list[dict[str, Any]], drops: Drops
) -> Iterator[tuple[dict[str, Any], Rendered]]:
    for row in rows:
        # Typed by a person or not, such a text would become the token: a user could end his turn
        # and speak for the assistant, and an answer would end in its middle.
        found = next(
            (
                m
                for message in row["messages"]
                if (m := chat.control_pattern.search(message["content"]))
            ),
            None,
        )
        if found:
            drops.add(CONTROL, row, f"holds {found[0]}")
            continue
        try:
            yield row, render(chat, row["messages"])
        except Unfit as problem:
            drops.add(UNFIT, row, str(problem))


def _refuse(drops: Drops, settings: TokenizationSettings) -> None:
    if count := drops.reasons[UNFIT]:
        raise DataError(
            f"{count:,} of {drops.read:,} {drops.side} rows cannot be trained on with this base's chat template:\n"
            f"{drops.listing(UNFIT)}\n"
            "Correct these rows or take them out, or choose another base."
        )
    if (count := drops.reasons[TOO_LONG]) and settings.long_rows == "error":
        raise DataError(
            f"{count:,} of {drops.read:,} {drops.side} rows are longer than tokenization.max_length "
            f"({settings.max_length:,} tokens):\n{drops.listing(TOO_LONG)}\n"
            "Nothing is ever cut off. Raise tokenization.max_length, shorten the rows, or leave them "
            "out with tokenization.long_rows: drop."
        )
    count = drops.reasons[CONTROL]
    if count > MAX_CONTROL_SHARE * drops.read:
        raise DataError(
            f"{count:,} of {drops.read:,} {drops.side} rows hold the text of a control token, which would act as "
            f"one (up to {MAX_CONTROL_SHARE:.0%} are left out, this is more):\n"
            f"{drops.listing(CONTROL)}\n"
            "Were the rows exported after a chat template was applied? Export the plain messages, or "
            "remove these texts."
        )
