"""Counts of a side's rows: which were left out for which reason, which were changed, which are longest."""

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SHOWN_ROWS = 20
LONGEST_ROWS = 10


@dataclass
class Drops:
    """How many rows were read, and what became of those that were not kept as they are."""

    side: str
    """`train` or `test`."""
    read: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first rows of each reason, as `row ID (source): what`."""
    counts: Counter[str] = field(default_factory=Counter)
    """Rows that were kept, but not as they are, by what was done."""
    longest: list[tuple[int, str, str]] = field(default_factory=list)
    """The longest rows as tokens, id and source, before anything was shortened or left out."""

    def add(self, reason: str, row: dict[str, Any], what: str) -> None:
        """Count one row that is left out."""
        self.reasons[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < SHOWN_ROWS:
            shown.append(f"row {row['id']} ({row['source']}): {what}")

    def count(self, what: str, number: int = 1) -> None:
        """Count rows that were changed."""
        if number:
            self.counts[what] += number

    def measured(self, row: dict[str, Any], tokens: int) -> None:
        """Remember a row's length if it is among the longest."""
        if len(self.longest) < LONGEST_ROWS or tokens >= self.longest[-1][0]:
            self._keep_longest([*self.longest, (tokens, str(row["id"]), str(row["source"]))])

    def merge(self, later: "Drops") -> None:
        """Add the counts of rows that came after these."""
        self.read += later.read
        self.reasons.update(later.reasons)
        self.counts.update(later.counts)
        for reason, examples in later.examples.items():
            shown = self.examples.setdefault(reason, [])
            shown += examples[: SHOWN_ROWS - len(shown)]
        self._keep_longest([*self.longest, *later.longest])

    def describe(self) -> str:
        """The counts in words."""
        parts = [f"{count:,} {reason}" for reason, count in sorted(self.reasons.items())]
        return ", ".join([f"{self.read:,} rows read", *parts])

    def listing(self, reason: str) -> str:
        """The first rows of a reason, one a line."""
        lines = [f"  {example}" for example in self.examples[reason]]
        more = self.reasons[reason] - len(lines)
        return "\n".join([*lines, f"  ... and {more:,} more"] if more else lines)

    def _keep_longest(self, rows: list[tuple[int, str, str]]) -> None:
        self.longest = heapq.nsmallest(LONGEST_ROWS, rows, key=lambda row: (-row[0], row[1]))
