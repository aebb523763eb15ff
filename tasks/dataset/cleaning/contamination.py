"""Training rows that repeat evaluation rows: an evaluation that finds them measures memory.

Two measures, because each misses what the other finds. Runs of words find what is quoted whole,
also inside a longer text (70 % of runs of 8 words, as for PaLM, arXiv 2204.02311, section 8). MinHash
finds what was changed here and there: a word in eight, clauses in another order.

A row that quotes an evaluation row, prompt and answer, is left out however many such rows there are.
Else, what occurs in many rows, of the evaluation or of the training, is an instruction or a form and
does not count; nor does an evaluation row that many training rows are like. Those are told, for from
here a form and a leak in many variations look alike.
"""

import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from tasks.dataset.cleaning.found import FORM_ROWS, Found, Match
from tasks.dataset.cleaning.runs import Runs
from tasks.dataset.cleaning.shingles import compared
from tasks.dataset.cleaning.similar import Similar
from tasks.dataset.cleaning.system_prompts import SystemPrompts
from tasks.dataset.cleaning_settings import ContaminationSettings
from tasks.dataset.rows import Row
from tasks.errors import DataError
from tasks.memory import available_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

OUT_OF_SCOPE = (
    "A paraphrase that says the same in other words is not found: it shares neither runs of words "
    "nor pieces of text with the evaluation row."
)
"""For the dataset card: what this check does not promise."""

BYTES_PER_EVALUATION_ROW, BYTES_PER_EVALUATION_CHARACTER = 1_500, 20
"""Texts, sketches and indices, and what building them takes; a test measures it."""

_SAMPLED_ROWS = 1000
_BATCH_CHARACTERS, _BATCH_ROWS = 500_000, 1024


class Contamination:
    """Knows the evaluation rows, and says which training rows repeat one."""

    def __init__(
        self,
        settings: ContaminationSettings,
        evaluation: Iterable[Row],
        training: Iterable[Row] = (),
        rows: int = 0,
        memory_bytes: int | None = None,
    ) -> None:
        """`evaluation` are the rows of all evaluation sets; their texts are kept in memory. Of
        `training`, about so many `rows`, only what they share with those is counted. `memory_bytes`
        is what may be used; by default what is free now.

        Raises: DataError when the evaluation rows do not fit.
        """
        self._settings = settings
        self._texts: list[str] = []
        self._prompts: list[int] = []
        self._askers: list[int] = []
        self._found = Found()
        self._gather(evaluation, available_bytes() if memory_bytes is None else memory_bytes)
        if not self._texts:
            return
        for _, texts in _batches(training):
            self._runs.meet(texts)
            self._similar.meet(texts)
            self._similar.meet_sample(_sampled(texts, max(1, rows // _SAMPLED_ROWS)))
        self._runs.leave_out_forms(FORM_ROWS)
        self._similar.leave_out_forms(FORM_ROWS)

    @property
    def common(self) -> int:
        """In more evaluation rows than so many, a piece of text is an instruction or a form.

        A twentieth of them, but a question may well be asked three times, and what twenty rows
        have in common is a form in a set of any size. Rows with one prompt count as one.
        """
        return max(3, min(20, len(self._texts) // 20))

    @property
    def unchecked(self) -> int:
        """Evaluation rows that cannot be recognised: short, all form, or one of `resembled`."""
        if not self._texts:
            return 0
        known = (self._runs.recognisable | self._similar.recognisable) & ~self._covered
        known[list(self._found.quoted)] = True
        known[self.resembled] = False
        return int((~known).sum())

    @property
    def resembled(self) -> list[int]:
        """Evaluation rows that more than `FORM_ROWS` training rows resemble, and that are not quoted:
        those that `matches` found in so many, and those whose prompt and answer consist of what so
        many share.
        """
        import numpy as np

        if not self._texts:
            return []
        found = set(np.flatnonzero(self._covered & self._runs.with_long_answers).tolist())
        return sorted((found - self._found.quoted) | self._found.resembled)

    def matches(self, rows: Iterable[Row]) -> list[Match | None]:
        """For each training row, in order, what it repeats; None for nothing."""
        count = 0
        systems = SystemPrompts(self._runs, self._settings.ngram_share) if self._texts else None
        for batch, texts in _batches(rows):
            if systems is not None:
                held = self._runs.held(texts, self._settings.ngram_share)
                quoted = self._found.quote(count, held.quoted)
                self._found.add(count, held.shared, "runs of words", quoted)
                similar = self._similar.found(texts, self._settings.similarity)
                self._found.add(count, similar, "similar text", quoted)
                systems.look(count, batch)
            count += len(batch)
        for (evaluation, share), holders in (systems.holding if systems else {}).items():
            self._found.add_all(holders, evaluation, share)
        best = self._found.best()
        return [best.get(number) for number in range(count)]

    def _gather(self, evaluation: Iterable[Row], free: int | None) -> None:
        first_with: dict[int, int] = {}
        characters = 0
        for number, row in enumerate(evaluation):
            prompt, answer = compared(row)
            self._texts.append(f"{prompt} {answer}")
            self._prompts.append(len(prompt))
            # Rows with one prompt count as one where what many rows share is looked for.
            self._askers.append(first_with.setdefault(hash(prompt), number) if prompt else number)
            characters += len(self._texts[-1])
            needed = (number + 1) * BYTES_PER_EVALUATION_ROW
            needed += characters * BYTES_PER_EVALUATION_CHARACTER
            if free is not None and needed > free:
                raise DataError(
                    f"Looking for evaluation rows among training rows needs more than "
                    f"{needed / 1e9:.2f} GB of memory for the first {number + 1:,} evaluation rows "
                    f"({BYTES_PER_EVALUATION_ROW:,} bytes a row and {BYTES_PER_EVALUATION_CHARACTER} "
                    f"a character), and {free / 1e9:.2f} GB are free. Use a machine with more memory, "
                    "fewer evaluation rows (dataset.split.max_test_rows, dataset.split.test, a smaller "
                    "dataset.holdout), or set dataset.cleaning.contamination to null: then nothing "
                    "tells whether the evaluation measures memory."
                )

    @cached_property
    def _counted(self) -> list[bool]:
        return [number == first for number, first in enumerate(self._askers)]

    @cached_property
    def _runs(self) -> Runs:
        words = self._settings.ngram_words
        return Runs(self._texts, self._prompts, self._counted, words, self.common)

    @cached_property
    def _similar(self) -> Similar:
        return Similar(self._texts, self._prompts, self._counted, self.common)

    @property
    def _covered(self) -> "npt.NDArray[np.bool_]":
        """Marks rows of which too little is left beside what many training rows share."""
        import numpy as np

        return np.asarray(self._similar.covered > 1 - self._settings.ngram_share)


def _sampled(texts: list[str], every: int) -> list[str]:
    """One in so many, chosen by what they say: the sample must not depend on their order."""
    return [text for text in texts if zlib.crc32(text.encode("utf-8", "replace")) % every == 0]


def _batches(rows: Iterable[Row]) -> Iterator[tuple[list[Row], list[str]]]:
    """Rows, and what each says."""
    batch: list[Row] = []
    texts: list[str] = []
    characters = 0
    for row in rows:
        batch.append(row)
        texts.append(" ".join(compared(row)))
        characters += len(texts[-1])
        if characters > _BATCH_CHARACTERS or len(batch) == _BATCH_ROWS:
            yield batch, texts
            batch, texts, characters = [], [], 0
    if batch:
        yield batch, texts
