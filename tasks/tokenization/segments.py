"""Cut a token row into stretches of trained and untrained text."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from tasks.tokenization.chat import Chat
from tasks.tokenization.spans import UNTRAINED


class Segment(NamedTuple):
    """Text of neighbouring tokens, special tokens visible."""

    text: str
    trained: bool


def segments(chat: Chat, input_ids: Sequence[int], labels: Sequence[int]) -> list[Segment]:
    """The row's text in order; trained and untrained stretches take turns."""
    pairs = zip(input_ids, labels, strict=True)
    return [
        Segment(chat.decode([token for token, _ in stretch]), trained)
        for trained, stretch in groupby(pairs, key=lambda pair: pair[1] != UNTRAINED)
    ]
