"""Training rows that repeat evaluation rows: an evaluation that finds them measures memory.

Two measures, because each misses what the other finds. Runs of words find what is quoted whole,
also inside a longer text (70 % of runs of 8 words, as for PaLM, arXiv 2204.02311, section 8). MinHash
finds what was changed here and there: a word in eight, clauses in another order.

What occurs in many rows, of the evaluation or of the training, is an instruction or a form; it does
not count in either. Nor does an evaluation row that many training rows are like.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from tasks.dataset.cleaning.runs import Pairs, Runs
from tasks.dataset.cleaning.shingles import compared
from tasks.dataset.cleaning.similar import Similar
from tasks.dataset.cleaning_settings import ContaminationSettings
from tasks.dataset.rows import Row

OUT_OF_SCOPE = (
    "A paraphrase that says the same in other words is not found: it shares neither runs of words "
    "nor pieces of text with the evaluation row."
)
"""For the dataset card: what this check does not promise."""

FORM_ROWS = 10
"""What stands in more training rows than so many is an instruction or a form: an evaluation row that
leaked has a few copies, of which `near_duplicates` has left those that differ."""
_SAMPLED_ROWS = 1000
_BATCH_CHARACTERS, _BATCH_ROWS = 500_000, 1024


How = Literal["runs of words", "similar text"]


@dataclass(frozen=True)
class Match:
    """A training row repeats an evaluation row."""

    evaluation: int
    """The evaluation row's number, in the order in which they were given."""
    how: How
    share: float
    """Of the evaluation row's runs that the training row holds, or the estimated similarity."""


class Contamination:
    """Knows the evaluation rows, and says which training rows repeat one."""

    def __init__(
        self,
        settings: ContaminationSettings,
        evaluation: Iterable[Row],
        training: Iterable[Row] = (),
        rows: int = 0,
    ) -> None:
        """`evaluation` are the rows of all evaluation sets; their texts are kept in memory. Of
        `training`, about so many `rows`, only what they share with those is counted.
        """
        self._settings = settings
        self._parts = [compared(row) for row in evaluation]
        if not self._parts:
            return
        for batch in _batches(training):
            self._runs.meet(batch)
            self._similar.meet(batch, FORM_ROWS)
            self._similar.meet_sample(_sampled(batch, max(1, rows // _SAMPLED_ROWS)))
        self._runs.leave_out_forms(FORM_ROWS)
        self._similar.leave_out_forms(FORM_ROWS)

    @property
    def common(self) -> int:
        """In more evaluation rows than so many, a piece of text is an instruction or a form.

        A twentieth of them, but a question may well be asked three times, and what twenty rows
        have in common is a form in a set of any size. Rows with one prompt count as one.
        """
        return max(3, min(20, len(self._parts) // 20))

    @property
    def unchecked(self) -> int:
        """Evaluation rows that cannot be recognised: short, all form, or so like others that `matches`
        found them in more than `FORM_ROWS` training rows.
        """
        by_runs = {self._owners[i] for i in self._runs.recognisable}
        return len(self._parts) - len((by_runs | self._similar.recognisable) - self._found.forms)

    def matches(self, rows: Iterable[Row]) -> list[Match | None]:
        """For each training row, in order, what it repeats; None for nothing."""
        count = 0
        for batch in _batches(rows):
            if self._parts:
                held = self._runs.held(batch, self._settings.ngram_share)
                self._found.add(count, held, "runs of words", self._owners)
                similar = self._similar.found(batch, self._settings.similarity)
                self._found.add(count, similar, "similar text")
            count += len(batch)
        best = self._found.best()
        return [best.get(number) for number in range(count)]

    @cached_property
    def _found(self) -> "_Found":
        return _Found()

    @cached_property
    def _owners(self) -> list[int]:
        # Every evaluation row is indexed twice: whole, and its prompt alone, which may have
        # another answer in training.
        return [i for i in range(len(self._parts)) for _ in range(2)]

    @cached_property
    def _askers(self) -> list[int]:
        """For each evaluation row the first one with its prompt."""
        firsts: dict[str, int] = {}
        return [
            firsts.setdefault(prompt, i) if prompt else i
            for i, (prompt, _) in enumerate(self._parts)
        ]

    @cached_property
    def _runs(self) -> Runs:
        texts = [text for prompt, answer in self._parts for text in (f"{prompt} {answer}", prompt)]
        counted_as = [self._askers[i] for i in self._owners]
        return Runs(texts, counted_as, self._settings.ngram_words, self.common)

    @cached_property
    def _similar(self) -> Similar:
        counted = [i == first for i, first in enumerate(self._askers)]
        texts = [f"{prompt} {answer}" for prompt, answer in self._parts]
        return Similar(texts, counted, self.common)


class _Found:
    """Training rows by the evaluation row that they repeat, as long as these are few."""

    def __init__(self) -> None:
        self.forms: set[int] = set()
        """Evaluation rows that more than `FORM_ROWS` training rows are like: no leak is so common."""
        self._rows: dict[int, dict[int, Match]] = {}

    def add(self, first: int, pairs: Pairs, how: How, owners: Sequence[int] | None = None) -> None:
        """`first` is the number of the pairs' first row, `owners` whose the known texts are."""
        for asked, known, share in zip(*(part.tolist() for part in pairs), strict=True):
            evaluation = owners[known] if owners else known
            if evaluation in self.forms:
                continue
            rows = self._rows.setdefault(evaluation, {})
            match = Match(evaluation, how, share)
            before = rows.get(first + asked)
            if before is None or _rank(match) < _rank(before):
                rows[first + asked] = match
            if len(rows) > FORM_ROWS:
                self.forms.add(evaluation)
                del self._rows[evaluation]

    def best(self) -> dict[int, Match]:
        """Training row -> what it repeats most clearly."""
        best: dict[int, Match] = {}
        for rows in self._rows.values():
            for row, match in rows.items():
                if row not in best or _rank(match) < _rank(best[row]):
                    best[row] = match
        return best


def _rank(match: Match) -> tuple[bool, float, int]:
    """Words before similarity, then the larger share, then the first evaluation row."""
    return match.how != "runs of words", -match.share, match.evaluation


def _sampled(texts: list[str], every: int) -> list[str]:
    """One in so many, chosen by what they say: the sample must not depend on their order."""
    return [text for text in texts if zlib.crc32(text.encode("utf-8", "replace")) % every == 0]


def _batches(rows: Iterable[Row]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for row in rows:
        batch.append(" ".join(compared(row)))
        characters += len(batch[-1])
        if characters > _BATCH_CHARACTERS or len(batch) == _BATCH_ROWS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
