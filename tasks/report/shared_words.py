"""Mark in an answer the words that it shares with the reference, in the reference's order."""

import re
from difflib import SequenceMatcher

from tasks.report.markup import text

MOST_WORDS = 400
"""Of either text. Beyond it the comparison costs more than it tells: its time grows with the square."""
_PIECES = re.compile(r"\w+|\W+")


def marked(answer: str, reference: str) -> str | None:
    """The answer as HTML with shared words in `<mark>`; None where a text is too long to compare.

    Words are compared as ROUGE-L does, in order and without regard to case.
    """
    pieces = _PIECES.findall(answer)
    places = [place for place, piece in enumerate(pieces) if piece[0].isalnum() or piece[0] == "_"]
    theirs = [word.lower() for word in re.findall(r"\w+", reference)]
    if max(len(places), len(theirs)) > MOST_WORDS:
        return None
    mine = [pieces[place].lower() for place in places]
    matcher = SequenceMatcher(None, mine, theirs, autojunk=False)
    shared = {
        places[block.a + offset]
        for block in matcher.get_matching_blocks()
        for offset in range(block.size)
    }
    return "".join(_run(pieces, shared))


def _run(pieces: list[str], shared: set[int]) -> list[str]:
    """Neighbouring marks as one: the space between two shared words belongs to them."""
    parts: list[str] = []
    is_open = False
    for place, piece in enumerate(pieces):
        inside = place in shared or (
            is_open and place + 1 in shared and not piece.strip() and "\n" not in piece
        )
        if inside != is_open:
            parts.append("<mark>" if inside else "</mark>")
            is_open = inside
        parts.append(text(piece))
    return [*parts, "</mark>"] if is_open else parts
