"""Tokenize rows chunk by chunk, and deal with those that are too long or cannot be trained on."""

from typing import Any, NamedTuple

from tasks.errors import DataError
from tasks.tokenization.chat import Chat
from tasks.tokenization.conversation import (
    CONTROL,
    Conversation,
    Skipped,
    conversation,
    unmarked,
    without_leading_space,
)
from tasks.tokenization.drops import Drops
from tasks.tokenization.encoder import Encoder, Ids
from tasks.tokenization.kinds import OTHER_KIND, fits, misfit
from tasks.tokenization.long_rows import Part, split_turns, truncate_prompt
from tasks.tokenization.reasons import (
    BAD_ANSWER,
    LOST,
    NEUTRALISED,
    SPLIT,
    STRIPPED,
    TOO_LONG,
    TRUNCATED,
    UNFIT,
    UNSEEN_TOOLS,
)
from tasks.tokenization.rendering import Rendered, Unfit, render
from tasks.tokenization.settings import TokenizationSettings
from tasks.tokenization.spans import Encoded, Melted, SpanEncoder

MAX_LOST_SHARE, ALWAYS_LOST = 0.01, 10
"""More rows than both that are left out for a control token's text are no accident."""
MAX_CONTROL_SHARE = 0.5
"""Where more rows than these hold one, the chat template was applied before the export."""


class TokenRow(NamedTuple):
    """One conversation, ready for training and for generation."""

    id: str
    source: str
    rendered: Rendered
    encoded: Encoded
    label: str | None
    desirable: bool | None = None
    """Whether the last answer was judged good, where answers are judged one by one."""
    rejected: Ids | None = None
    """Ids of the worse answer that a preference pair has in place of the last one, with the token that
    ends it."""

    @property
    def prompt(self) -> str:
        """What the model is given before the last answer."""
        text = self.rendered.text[: self.rendered.turns[-1].prompt]
        return unmarked(text) if self.rendered.marked else text

    @property
    def reference(self) -> str:
        """The last answer as the data has it."""
        return self.rendered.turns[-1].answer


class RowTokenizer:
    """Makes token rows of a dataset's rows."""

    def __init__(self, chat: Chat, encoder: Encoder, settings: TokenizationSettings) -> None:
        self._chat = chat
        self._settings = settings
        self._spans = SpanEncoder(chat, encoder)
        self._shows_tools = "tools" in chat.source

    def tokenize(self, rows: list[dict[str, Any]], drops: Drops) -> list[TokenRow]:
        """Token rows in the order of `rows`, which are counted in `drops` with what became of them.

        Raises: EncodersDisagree.
        """
        drops.read += len(rows)
        rendered: list[tuple[dict[str, Any], Conversation, Rendered]] = []
        for row in rows:
            if not fits(row, "conversations"):
                drops.add(OTHER_KIND, row, misfit(row))
                continue
            if row.get("desirable") is False:
                drops.add(BAD_ANSWER, row, "sft would learn to give it")
                continue
            try:
                given = conversation(self._chat, row, self._settings.train_on)
                rendered.append((row, given, render(self._chat, given)))
            except Skipped as skipped:
                drops.add(skipped.reason, row, skipped.what)
            except Unfit as problem:
                drops.add(UNFIT, row, str(problem))
        results = self._spans.encode([text for _, _, text in rendered])
        kept: list[TokenRow] = []
        for (row, given, text), result in zip(rendered, results, strict=True):
            if isinstance(result, Melted):
                given, text, result = self._stripped(given, text, result)
                drops.count(STRIPPED, not isinstance(result, Unfit))
            if isinstance(result, Unfit):
                # A text that cannot be kept apart from its control token is lost, not the dataset.
                drops.add(CONTROL if given.marked else UNFIT, row, str(result))
                continue
            if given.marked:
                drops.count(NEUTRALISED)
            if given.tools and not self._shows_tools:
                drops.count(UNSEEN_TOOLS)
            drops.measured(row, len(result.input_ids))
            if len(result.input_ids) <= self._settings.max_length:
                kept.append(_token_row(row, row["id"], Part(given, text, result)))
            else:
                kept += self._shortened(row, given, len(result.input_ids), drops)
        return kept

    def _stripped(
        self, given: Conversation, text: Rendered, problem: Melted
    ) -> tuple[Conversation, Rendered, Encoded | Unfit]:
        """The row without the white space that no prompt could be a prefix with, or as it was."""
        try:
            return self._part(without_leading_space(given))
        except Unfit:
            return given, text, problem

    def _shortened(
        self, row: dict[str, Any], given: Conversation, tokens: int, drops: Drops
    ) -> list[TokenRow]:
        policy, limit = self._settings.long_rows, self._settings.max_length
        try:
            if policy == "truncate_prompt":
                part = truncate_prompt(self._chat, given, self._part, limit)
                if part:
                    drops.count(TRUNCATED)
                    return [_token_row(row, row["id"], part)]
            elif policy == "split_turns":
                parts, lost = split_turns(given, self._part, limit)
                if parts:
                    drops.count(SPLIT)
                    drops.count(LOST, lost)
                    return [
                        _token_row(row, f"{row['id']}#{number}", part)
                        for number, part in enumerate(parts, 1)
                    ]
        except Unfit as problem:
            drops.add(UNFIT, row, f"when it is shortened: {problem}")
            return []
        drops.add(TOO_LONG, row, f"{tokens:,} tokens")
        return []

    def _part(self, given: Conversation) -> Part:
        rendered = render(self._chat, given)
        (result,) = self._spans.encode([rendered])
        if isinstance(result, Unfit):
            raise result
        return Part(given, rendered, result)


def refuse(drops: Drops, settings: TokenizationSettings) -> None:
    """Refuse a side by what was counted, once all of its rows are.

    Raises: DataError when rows cannot be trained on with this template, when rows are too long and
    `long_rows` is `error`, or when control tokens stand in the text of too many rows.
    """
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
            "Nothing is ever cut off without being asked for. Raise tokenization.max_length, shorten "
            "the rows, or choose tokenization.long_rows: drop leaves them out, truncate_prompt shortens "
            "what stands before the answer, split_turns makes several rows of a long conversation."
        )
    lost, kept = drops.reasons[CONTROL], drops.counts[NEUTRALISED]
    export = lost + kept > max(MAX_CONTROL_SHARE * drops.read, ALWAYS_LOST)
    if export or lost > max(MAX_LOST_SHARE * drops.read, ALWAYS_LOST):
        listing = f":\n{drops.listing(CONTROL)}\n" if lost else ". "
        raise DataError(
            f"{lost + kept:,} of {drops.read:,} {drops.side} rows hold the text of a control token, "
            f"{lost:,} of them where it cannot be kept as ordinary text{listing}"
            "Were the rows exported after a chat template was applied? Export the plain messages, or "
            "remove these texts."
        )


def _token_row(row: dict[str, Any], name: str, part: Part) -> TokenRow:
    return TokenRow(name, row["source"], part.rendered, part.encoded, row["label"])
