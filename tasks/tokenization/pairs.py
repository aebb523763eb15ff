"""Preference pairs as token rows: one prompt, a better and a worse answer, each with the token that ends it.

Both answers go through the model's own template and are verified as any trained answer is. Nothing is
ever cut off an answer; the two share their prompt token for token.
"""

from typing import Any

import numpy as np

from tasks.tokenization.chat import Chat
from tasks.tokenization.conversation import (
    CONTROL,
    Conversation,
    Skipped,
    conversation,
    without_leading_space,
)
from tasks.tokenization.drops import Drops
from tasks.tokenization.encoder import Encoder, Ids
from tasks.tokenization.kinds import OTHER_KIND, kind_of, misfit
from tasks.tokenization.long_rows import Part, truncate_prompt
from tasks.tokenization.reasons import (
    NEUTRALISED,
    STRIPPED,
    TOO_LONG,
    TRUNCATED,
    UNFIT,
    UNSEEN_TOOLS,
)
from tasks.tokenization.rendering import Rendered, Unfit, render
from tasks.tokenization.rows import TokenRow
from tasks.tokenization.settings import TokenizationSettings
from tasks.tokenization.spans import Encoded, Melted, SpanEncoder

SAME = "both answers are the same once rendered"


class PairTokenizer:
    """Makes token rows of a dataset's preference pairs."""

    def __init__(self, chat: Chat, encoder: Encoder, settings: TokenizationSettings) -> None:
        self._chat = chat
        self._settings = settings
        self._spans = SpanEncoder(chat, encoder)
        self._shows_tools = "tools" in chat.source

    def tokenize(self, rows: list[dict[str, Any]], drops: Drops) -> list[TokenRow]:
        """Token rows of the better answers, each with the worse one's ids in `rejected`.

        In the order of `rows`, which are counted in `drops` with what became of them.

        Raises: EncodersDisagree.
        """
        drops.read += len(rows)
        pairs: list[tuple[dict[str, Any], tuple[Conversation, Conversation]]] = []
        rendered: list[Rendered] = []
        for row in rows:
            if kind_of(row) != "pairs":
                drops.add(OTHER_KIND, row, misfit(row))
                continue
            try:
                both = self._both(row)
                texts = [render(self._chat, given) for given in both]
            except Skipped as skipped:
                drops.add(skipped.reason, row, skipped.what)
            except Unfit as problem:
                drops.add(UNFIT, row, str(problem))
            else:
                pairs.append((row, both))
                rendered += texts
        results = self._spans.encode(rendered)
        kept: list[TokenRow] = []
        for k, (row, both) in enumerate(pairs):
            found = results[2 * k : 2 * k + 2]
            try:
                if any(isinstance(one, Melted) for one in found):
                    both = (without_leading_space(both[0]), without_leading_space(both[1]))
                    part, rejected = self._pair(both[0], both[1].messages[-1])
                    drops.count(STRIPPED)
                else:
                    chosen, rejected = _verified(found)
                    part = Part(both[0], rendered[2 * k], chosen)
            except Unfit as problem:
                drops.add(CONTROL if both[0].marked or both[1].marked else UNFIT, row, str(problem))
                continue
            if (one := self._fitting(row, both, part, rejected, drops)) is not None:
                kept.append(one)
        return kept

    def _fitting(
        self,
        row: dict[str, Any],
        both: tuple[Conversation, Conversation],
        part: Part,
        rejected: Ids,
        drops: Drops,
    ) -> TokenRow | None:
        """The pair as a row, with a shorter prompt where the settings ask for one; None: left out."""
        if np.array_equal(part.encoded.input_ids[part.encoded.prompt_length :], rejected):
            drops.add(SAME, row, "nothing is to be preferred")
            return None
        if both[0].marked or both[1].marked:
            drops.count(NEUTRALISED)
        if both[0].tools and not self._shows_tools:
            drops.count(UNSEEN_TOOLS)
        tokens = max(len(part.encoded.input_ids), part.encoded.prompt_length + len(rejected))
        drops.measured(row, tokens)
        if tokens > self._settings.max_length:
            try:
                shorter = self._truncated(both)
            except Unfit as problem:
                drops.add(UNFIT, row, f"when it is shortened: {problem}")
                return None
            if shorter is None:
                drops.add(TOO_LONG, row, f"{tokens:,} tokens")
                return None
            part, rejected = shorter
            drops.count(TRUNCATED)
        return TokenRow(
            row["id"],
            row["source"],
            part.rendered,
            part.encoded,
            row["label"],
            rejected=rejected,
        )

    def _truncated(self, both: tuple[Conversation, Conversation]) -> tuple[Part, Ids] | None:
        """The better answer's row and the worse one's ids behind a prompt that is short enough for both."""
        if self._settings.long_rows != "truncate_prompt":
            return None
        worse = both[1].messages[-1]

        def longer(given: Conversation) -> Part:
            part, rejected = self._pair(given, worse)
            # Only its length is looked at, and it is the better answer's where that is the longer one.
            if part.encoded.prompt_length + len(rejected) <= len(part.encoded.input_ids):
                return part
            ids = np.concatenate([part.encoded.input_ids[: part.encoded.prompt_length], rejected])
            return part._replace(encoded=part.encoded._replace(input_ids=ids))

        fitting = truncate_prompt(self._chat, both[0], longer, self._settings.max_length)
        return None if fitting is None else self._pair(fitting.given, worse)

    def _pair(self, given: Conversation, worse: dict[str, Any]) -> tuple[Part, Ids]:
        """A conversation that ends with the better answer, and the ids of the worse one in its place.

        Raises: Unfit.
        """
        other = _with_messages(given, [*given.messages[:-1], worse])
        texts = [render(self._chat, one) for one in (given, other)]
        chosen, rejected = _verified(self._spans.encode(texts))
        return Part(given, texts[0], chosen), rejected

    def _both(self, row: dict[str, Any]) -> tuple[Conversation, Conversation]:
        """The conversation with either answer.

        Raises: Skipped, Unfit.
        """
        if len(row["rejected"]) != 1:
            raise Unfit(
                f"its rejected ending has {len(row['rejected'])} messages: a pair's two answers are one "
                "message each, and what comes before them is the same"
            )
        # A weight says what supervised training learns; here the last answers are compared.
        before = [{k: v for k, v in m.items() if k != "weight"} for m in row["messages"]]
        better, worse = (
            conversation(self._chat, {**row, "messages": [*before[:-1], last]}, "last_assistant")
            for last in (before[-1], row["rejected"][0])
        )
        return better, worse


def _with_messages(given: Conversation, messages: list[dict[str, Any]]) -> Conversation:
    return Conversation(messages, (len(messages) - 1,), given.tools, marked=given.marked)


def _verified(found: list[Encoded | Unfit]) -> tuple[Encoded, Ids]:
    """The better answer's row up to the token that ends it, and the ids of the worse answer alone.

    Raises: Unfit.
    """
    better, worse = found
    if isinstance(better, Unfit):
        raise better
    if isinstance(worse, Unfit):
        raise Unfit(f"its rejected answer: {worse}") from worse
    prompt, other = (one.input_ids[: one.prompt_length] for one in (better, worse))
    assert np.array_equal(prompt, other), "each was proved to begin with the same rendered prompt"
    # What a template writes behind the end of a turn is nobody's answer.
    start, stop = better.spans[-1]
    chosen = Encoded(better.input_ids[:stop], ((start, stop),))
    return chosen, worse.input_ids[worse.prompt_length : worse.spans[-1][1]]
