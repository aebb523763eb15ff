"""Training rows that repeat evaluation rows: an evaluation that finds them measures memory.

Two measures, because each misses what the other finds. Runs of words find what is quoted whole,
also inside a longer text (70 % of runs of 8 words, as for PaLM, arXiv 2204.02311, section 8). MinHash
finds what was changed here and there: a word in eight, clauses in another order.

What occurs in many evaluation rows is an instruction or a form; it does not count in either.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from tasks.dataset.cleaning.runs import Runs
from tasks.dataset.cleaning.shingles import compared
from tasks.dataset.cleaning.similar import Similar
from tasks.dataset.cleaning_settings import ContaminationSettings
from tasks.dataset.rows import Row

if TYPE_CHECKING:
    from tasks.dataset.cleaning.runs import Held

OUT_OF_SCOPE = (
    "A paraphrase that says the same in other words is not found: it shares neither runs of words "
    "nor pieces of text with the evaluation row."
)
"""For the dataset card: what this check does not promise."""

_BATCH_CHARACTERS, _BATCH_ROWS = 500_000, 1024


@dataclass(frozen=True)
class Match:
    """A training row repeats an evaluation row."""

    evaluation: int
    """The evaluation row's number, in the order in which they were given."""
    how: Literal["runs of words", "similar text"]
    share: float
    """Of the evaluation row's runs that the training row holds, or the estimated similarity."""


class Contamination:
    """Knows the evaluation rows, and says which training rows repeat one."""

    def __init__(self, settings: ContaminationSettings, evaluation: Iterable[Row]) -> None:
        """`evaluation` are the rows of all evaluation sets; their texts are kept in memory."""
        self._settings = settings
        self._parts = [compared(row) for row in evaluation]

    @property
    def common(self) -> int:
        """In more evaluation rows than so many, a piece of text is an instruction or a form.

        A twentieth of them, but a question may well be asked three times, and what twenty rows
        have in common is a form in a set of any size.
        """
        return max(3, min(20, len(self._parts) // 20))

    @property
    def unchecked(self) -> int:
        """Evaluation rows that hold too little of their own to be recognised: short or all form."""
        by_runs = {self._owners[i] for i in self._runs.recognisable}
        return len(self._parts) - len(by_runs | self._similar.recognisable)

    def matches(self, rows: Iterable[Row]) -> Iterator[Match | None]:
        """For each training row, in order, what it repeats; None for nothing."""
        batch: list[str] = []
        characters = 0
        for row in rows:
            batch.append(" ".join(compared(row)))
            characters += len(batch[-1])
            if characters > _BATCH_CHARACTERS or len(batch) == _BATCH_ROWS:
                yield from self._matched(batch)
                batch, characters = [], 0
        yield from self._matched(batch)

    def _matched(self, texts: Sequence[str]) -> Iterator[Match | None]:
        if not texts or not self._parts:
            yield from (None for _ in texts)
            return
        held = self._runs.held(texts, self._settings.ngram_share)
        similar = self._similar.found(texts, self._settings.similarity)
        for by_runs, by_text in zip(held, similar, strict=True):
            if by_runs is not None:
                yield self._by_runs(by_runs)
            elif by_text is not None:
                yield Match(by_text.text, "similar text", by_text.share)
            else:
                yield None

    def _by_runs(self, held: "Held") -> Match:
        return Match(self._owners[held.text], "runs of words", held.share)

    @cached_property
    def _owners(self) -> list[int]:
        # Every evaluation row is indexed twice: whole, and its prompt alone, which may have
        # another answer in training.
        return [i for i in range(len(self._parts)) for _ in range(2)]

    @cached_property
    def _runs(self) -> Runs:
        texts = [text for prompt, answer in self._parts for text in (f"{prompt} {answer}", prompt)]
        return Runs(texts, self._owners, self._settings.ngram_words, self.common)

    @cached_property
    def _similar(self) -> Similar:
        return Similar([f"{prompt} {answer}" for prompt, answer in self._parts], self.common)
