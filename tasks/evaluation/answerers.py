"""Trivial answerers: what an adapter must beat before its gain means more than learning to stop."""

import re
from collections.abc import Mapping, Sequence

FIRST_SENTENCE = "base, first sentence"
NAME = "name as words"

_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")


def trivial_answers(
    base_answers: Sequence[str], labels: Sequence[str | None]
) -> Mapping[str, list[str | None]]:
    """Answerer -> its answer to each row; None where it has none. `name as words` needs labels."""
    answers: dict[str, list[str | None]] = {
        FIRST_SENTENCE: [first_sentence(answer) for answer in base_answers]
    }
    if any(labels):
        answers[NAME] = [label or None for label in labels]
    return answers


def first_sentence(text: str) -> str:
    """`text` up to its first full stop, exclamation or question mark before white space, or line end.

    An abbreviation ends it too; that is a trivial answerer's right.
    """
    text = text.strip()
    end = _SENTENCE_END.search(text)
    return text if end is None else text[: end.end()].rstrip()
