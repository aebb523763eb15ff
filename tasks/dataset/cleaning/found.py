"""What decontamination found: training rows that repeat an evaluation row, and what looks alike in too many."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from tasks.dataset.cleaning.runs import Pairs

FORM_ROWS = 10
"""What is alike in more training rows than so many may be an instruction or a form: an evaluation row
that leaked has a few copies, of which `near_duplicates` has left those that differ."""

How = Literal["runs of words", "similar text", "in the system prompt"]


@dataclass(frozen=True, slots=True)
class Match:
    """A training row repeats an evaluation row."""

    evaluation: int
    """The evaluation row's number, in the order in which they were given."""
    how: How
    share: float
    """Of the evaluation row's runs that the training row holds, or the estimated similarity."""


class Found:
    """Training rows by the evaluation row that they repeat, as long as these are few, or quote it whole."""

    def __init__(self) -> None:
        self.resembled: set[int] = set()
        """Evaluation rows that more than `FORM_ROWS` training rows are like without quoting them."""
        self.quoted: set[int] = set()
        """Evaluation rows that training rows quote, prompt and answer."""
        self._rows: dict[int, dict[int, Match]] = {}
        self._best: dict[int, Match] = {}

    def quote(self, first: int, pairs: Pairs) -> set[tuple[int, int]]:
        """Leaks, however many rows hold one; the pairs. `first` is the number of their first row."""
        told = set()
        for asked, known, share in zip(*(part.tolist() for part in pairs), strict=True):
            self.quoted.add(known)
            told.add((first + asked, known))
            self._keep(first + asked, Match(known, "runs of words", share))
        return told

    def add(self, first: int, pairs: Pairs, how: How, quoted: Collection[tuple[int, int]]) -> None:
        """Leaks if few rows are like the evaluation row, and a form otherwise; `quoted` are told."""
        for asked, known, share in zip(*(part.tolist() for part in pairs), strict=True):
            row = first + asked
            if known in self.resembled or (row, known) in quoted:
                continue
            rows = self._rows.setdefault(known, {})
            match = Match(known, how, share)
            if row not in rows or _rank(match) < _rank(rows[row]):
                rows[row] = match
            if len(rows) > FORM_ROWS:
                self.resembled.add(known)
                del self._rows[known]

    def add_all(self, rows: Collection[int], evaluation: int, share: float) -> None:
        """Rows of one system prompt, which holds the evaluation row."""
        if len(rows) > FORM_ROWS:
            self.resembled.add(evaluation)
            return
        for row in rows:
            self._keep(row, Match(evaluation, "in the system prompt", share))

    def best(self) -> dict[int, Match]:
        """Training row -> what it repeats most clearly."""
        best = dict(self._best)
        for rows in self._rows.values():
            for row, match in rows.items():
                if row not in best or _rank(match) < _rank(best[row]):
                    best[row] = match
        return best

    def _keep(self, row: int, match: Match) -> None:
        if row not in self._best or _rank(match) < _rank(self._best[row]):
            self._best[row] = match


def _rank(match: Match) -> tuple[bool, float, int]:
    """Words before similarity, then the larger share, then the first evaluation row."""
    return match.how == "similar text", -match.share, match.evaluation
