"""Cut a token row into stretches of trained, untrained and special tokens."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from tasks.tokenization.chat import Chat
from tasks.tokenization.spans import UNTRAINED


class Segment(NamedTuple):
    """Text of neighbouring tokens."""

    text: str
    trained: bool
    special: bool
    """Whether it is special tokens, which no typed text becomes."""


def segments(chat: Chat, input_ids: Sequence[int], labels: Sequence[int]) -> list[Segment]:
    """The row's text in order; neighbours differ in what they are."""

    def kind(pair: tuple[int, int]) -> tuple[bool, bool]:
        return pair[1] != UNTRAINED, pair[0] in chat.special_ids

    pairs = zip(input_ids, labels, strict=True)
    return [
        Segment(chat.decode([token for token, _ in stretch]), trained, special)
        for (trained, special), stretch in groupby(pairs, key=kind)
    ]
