"""Some rendered texts of a dataset, on which encoders are compared before one is trusted with the rest."""

import json
from pathlib import Path

from tasks.tokenization.chat import Chat
from tasks.tokenization.conversation import Skipped, conversation
from tasks.tokenization.rendering import Unfit, render

PLACES = 64
ROWS_AT_A_PLACE = 2
LONGEST_LINE_BYTES = 1_000_000


def sample_texts(chat: Chat, rows: Path) -> list[str]:
    """Rows from everywhere in a dataset's file, evenly by bytes, as the template renders them."""
    texts = []
    size = rows.stat().st_size
    with rows.open("rb") as stream:
        for place in sorted({size * k // PLACES for k in range(PLACES)}):
            stream.seek(place)
            if place:
                # What is left of the line that the place is in.
                stream.readline(LONGEST_LINE_BYTES)
            for _ in range(ROWS_AT_A_PLACE):
                line = stream.readline(LONGEST_LINE_BYTES)
                if line.startswith(b"{") and line.endswith(b"\n"):
                    texts += _text(chat, line)
    return list(dict.fromkeys(texts))


def _text(chat: Chat, line: bytes) -> list[str]:
    try:
        row = json.loads(line)
        if row.get("text") is not None:
            return [row["text"]]
        given = conversation(chat, row, "assistant")
        return [] if given.marked else [render(chat, given).text]
    except (Skipped, Unfit, ValueError):
        # Counted and reported when its turn comes.
        return []
