"""Counts of one side, kept while its rows pass by, and put together from several processes."""

import heapq
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tasks.quantiles import quantiles
from tasks.tokenization.drops import Drops
from tasks.tokenization.fidelity import EXACT, Fidelity
from tasks.tokenization.rows import TokenRow
from tasks.tokenization.text_rows import TextRow

HISTOGRAM_BINS = 12
SAMPLES = 3


class Sample(NamedTuple):
    """A row to be shown."""

    id: str
    input_ids: list[int]
    labels: list[int]


@dataclass
class Tally:
    """Counts of one side."""

    drops: Drops
    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    """Tokens of each row."""
    trained: "array[int]" = field(default_factory=lambda: array("i"))
    """Trained tokens of each row."""
    turns: int = 0
    trimmed_answers: int = 0
    unindented_answers: int = 0
    prefixed_answers: int = 0
    altered_answers: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    """`good` and `bad` answers that were judged one by one, and `pairs`; of other kinds nothing."""
    samples: list[Sample] = field(default_factory=list)
    """The rows with the smallest ids."""

    def add(self, fidelity: Fidelity, rows: Sequence[TokenRow | TextRow]) -> None:
        """Count rows."""
        for row in rows:
            self.lengths.append(len(row.encoded.input_ids))
            self.trained.append(row.encoded.trained_tokens)
            if isinstance(row, TokenRow) and row.desirable is not None:
                self.verdicts["good" if row.desirable else "bad"] += 1
            elif isinstance(row, TokenRow) and row.rejected is not None:
                self.verdicts["pairs"] += 1
        verdicts = fidelity.verdicts(
            [(row.rendered, row.encoded) for row in rows if isinstance(row, TokenRow)]
        )
        self.turns += len(verdicts)
        for verdict in verdicts:
            if verdict is not EXACT:
                self.trimmed_answers += verdict.trimmed
                self.unindented_answers += verdict.unindented
                self.prefixed_answers += verdict.prefixed
                self.altered_answers += verdict.altered
        for row in heapq.nsmallest(SAMPLES, rows, key=lambda row: row.id):
            encoded = row.encoded
            self.samples.append(Sample(row.id, encoded.input_ids.tolist(), encoded.labels.tolist()))
        self._keep_samples()

    def merge(self, later: "Tally") -> None:
        """Add the counts of rows that came after these."""
        self.drops.merge(later.drops)
        self.lengths.extend(later.lengths)
        self.trained.extend(later.trained)
        self.turns += later.turns
        self.trimmed_answers += later.trimmed_answers
        self.unindented_answers += later.unindented_answers
        self.prefixed_answers += later.prefixed_answers
        self.altered_answers += later.altered_answers
        self.verdicts.update(later.verdicts)
        self.samples += later.samples
        self._keep_samples()

    def _keep_samples(self) -> None:
        self.samples = heapq.nsmallest(SAMPLES, self.samples, key=lambda sample: sample.id)


def card(tallies: dict[str, Tally], encoder: str) -> dict[str, Any]:
    """Counts as JSON; holds no text of the rows but the ids and sources of some."""
    judged = any(tally.verdicts["good"] + tally.verdicts["bad"] for tally in tallies.values())
    verdicts = {side: dict(sorted(tally.verdicts.items())) for side, tally in tallies.items()}
    return {
        **({"verdicts": verdicts} if judged else {}),
        "encoder": encoder,
        "rows": {side: len(tally.lengths) for side, tally in tallies.items()},
        "tokens": {side: sum(tally.lengths) for side, tally in tallies.items()},
        "trained_tokens": {side: sum(tally.trained) for side, tally in tallies.items()},
        "turns": {side: tally.turns for side, tally in tallies.items()},
        "dropped": {side: dict(sorted(t.drops.reasons.items())) for side, t in tallies.items()},
        "dropped_rows": {side: t.drops.examples for side, t in tallies.items()},
        "changed": {side: dict(sorted(t.drops.counts.items())) for side, t in tallies.items()},
        "longest_rows": {side: _longest(tally.drops) for side, tally in tallies.items()},
        "trimmed_answers": {side: t.trimmed_answers for side, t in tallies.items()},
        "unindented_answers": {side: t.unindented_answers for side, t in tallies.items()},
        "prefixed_answers": {side: t.prefixed_answers for side, t in tallies.items()},
        "altered_answers": {side: t.altered_answers for side, t in tallies.items()},
        "length": {side: quantiles(tally.lengths) for side, tally in tallies.items()},
        "trained_length": {side: quantiles(tally.trained) for side, tally in tallies.items()},
        "histogram": {side: histogram(tally.lengths) for side, tally in tallies.items()},
    }


def histogram(lengths: Sequence[int]) -> list[dict[str, int]]:
    """Rows per range of lengths in tokens: `{"from", "to", "rows"}`, both ends included."""
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // HISTOGRAM_BINS)
    counts = [0] * (-(-(high - low + 1) // width))
    for length in lengths:
        counts[(length - low) // width] += 1
    return [
        {"from": low + i * width, "to": min(low + (i + 1) * width - 1, high), "rows": rows}
        for i, rows in enumerate(counts)
    ]


def _longest(drops: Drops) -> list[dict[str, Any]]:
    return [{"id": name, "source": source, "tokens": n} for n, name, source in drops.longest]
