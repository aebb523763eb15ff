"""System prompts that quote an evaluation row, as an example of an answer."""

from tasks.dataset.cleaning.runs import Runs
from tasks.dataset.cleaning.shingles import operators
from tasks.dataset.rows import Row

_REMEMBERED = 10_000
"""Prompts looked at whose outcome is kept: a set where each row has its own must not fill memory."""


class SystemPrompts:
    """Shown the training rows batch by batch; a prompt that thousands of rows share is looked at once."""

    def __init__(self, runs: Runs, share: float) -> None:
        self._runs, self._share = runs, share
        self._known: dict[int, list[tuple[int, float]]] = {}
        self.holding: dict[tuple[int, float], list[int]] = {}
        """(evaluation row, share of its runs) -> training rows whose system prompt holds it."""

    def look(self, first: int, batch: list[Row]) -> None:
        """Look at the system prompts of a batch; `first` is the number of its first row."""
        texts = [operators(row) for row in batch]
        new = list(
            {hash(text): text for text in texts if text and hash(text) not in self._known}.values()
        )
        if len(self._known) + len(new) > _REMEMBERED:
            self._known.clear()
            new = list({hash(text): text for text in texts if text}.values())
        self._known.update((hash(text), []) for text in new)
        if new:
            found = self._runs.held(new, self._share).quoted
            for asked, known, share in zip(*(part.tolist() for part in found), strict=True):
                self._known[hash(new[asked])].append((known, share))
        for number, text in enumerate(texts, start=first):
            for what in self._known.get(hash(text), ()) if text else ():
                self.holding.setdefault(what, []).append(number)
