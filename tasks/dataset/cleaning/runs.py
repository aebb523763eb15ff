"""Runs of words ("n-grams") that evaluation rows consist of, and how many of them a row holds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tasks.dataset.cleaning.run_entries import entries, kinds_of, runs_of
from tasks.dataset.cleaning.sorted_keys import SortedKeys, distinct, first_of_each
from tasks.dataset.cleaning.words import hashed_words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MIN_RUNS = 6
"""With runs of 8 words, 13 words on end: the length by which GPT-3's authors looked for overlap
(arXiv 2005.14165, appendix C). Fewer are a figure of speech."""

_AT_ONCE = 1024


class Pairs(NamedTuple):
    """Arrays of one length: texts asked about, texts of the set that they repeat, and how much."""

    asked: "npt.NDArray[np.int64]"
    known: "npt.NDArray[np.int64]"
    shares: "npt.NDArray[np.float64]"


class Held(NamedTuple):
    """What `Runs.held` found: pairs whatever the number of texts asked, and pairs that count while
    they are few.
    """

    quoted: Pairs
    shared: Pairs


class Runs:
    """An index of some texts' runs; asks of other texts which of the first they hold.

    Takes about 20 bytes for each word of the set.
    """

    def __init__(
        self,
        texts: Sequence[str],
        prompts: Sequence[int],
        counted: Sequence[bool],
        words: int,
        common: int,
    ) -> None:
        """`prompts` says how many characters of each text are its prompt. Runs of `words` words that
        occur in more than `common` of the `counted` texts do not count: they are instructions and
        forms of the set.
        """
        import numpy as np

        self._words = words
        self._count = len(texts)
        made = [
            entries(
                texts[start : start + _AT_ONCE], prompts[start : start + _AT_ONCE], words, start
            )
            for start in range(0, len(texts), _AT_ONCE)
        ]
        runs = np.concatenate([np.empty(0, np.uint64), *(each.runs for each in made)])
        texts_of = np.concatenate([np.empty(0, np.uint32), *(each.texts for each in made)])
        parts = np.concatenate([np.empty(0, np.uint8), *(each.parts for each in made)])
        del made
        order = np.argsort(runs, kind="stable")
        runs, texts_of, parts = runs[order], texts_of[order], parts[order]
        begins = np.flatnonzero(first_of_each(runs))
        times = np.diff(np.append(begins, len(runs)))
        own = np.zeros(len(begins), dtype=np.bool_)
        if len(begins):
            weight = np.asarray(counted, dtype=np.int64)[texts_of]
            own = np.add.reduceat(weight, begins) <= common
        # What the set itself has in common is never compared: it would be found in every text of it.
        kept = np.repeat(own, times)
        self._keys = SortedKeys(runs[begins][own])
        self._texts, self._parts = texts_of[kept], parts[kept]
        self._times = times[own]
        self._begins = np.cumsum(self._times) - self._times
        self._met = np.zeros(len(self._keys), dtype=np.uint16)
        self._telling = np.ones(len(self._keys), dtype=np.bool_)
        self._total()

    @property
    def recognisable(self) -> "npt.NDArray[np.bool_]":
        """Marks the texts that have enough runs that are in few other texts."""
        import numpy as np

        return np.asarray(self._own[0] >= MIN_RUNS)

    @property
    def with_long_answers(self) -> "npt.NDArray[np.bool_]":
        """Marks the texts whose answers alone have enough runs."""
        import numpy as np

        return np.asarray(self._every[2] >= MIN_RUNS)

    def meet(self, texts: Sequence[str]) -> None:
        """Count in how many other texts each run stands."""
        import numpy as np

        places, rows = self._found(texts)
        once = distinct(rows * max(1, len(self._keys)) + places) % max(1, len(self._keys))
        # Far above what counts as common, far below where the count would begin anew.
        np.add.at(self._met, once[self._met[once] < 1 << 15], 1)

    def leave_out_forms(self, common: int) -> None:
        """Runs that stand in more than `common` of the texts met are shared by many from now on."""
        self._telling = self._met <= common
        self._total()

    def held(self, texts: Sequence[str], share: float) -> Held:
        """Which of the texts hold at least `share` of an indexed one's runs.

        `quoted`: of the whole, of its prompt and of its answer, where the answer has `MIN_RUNS` of
        them, however many texts hold them. `shared`: `MIN_RUNS` runs that few texts hold, of the
        whole or of its prompt.
        """
        import numpy as np

        places, rows = self._found(texts)
        pairs = distinct(rows * max(1, len(self._keys)) + places)
        rows, places = np.divmod(pairs, max(1, len(self._keys)))
        times = self._times[places]
        entry = np.repeat(self._begins[places] - (np.cumsum(times) - times), times)
        entry += np.arange(len(entry))
        both = np.repeat(rows, times) * max(1, self._count) + self._texts[entry].astype(np.int64)
        telling = np.repeat(self._telling[places], times)
        order = np.argsort(both, kind="stable")
        both, telling, parts = both[order], telling[order], self._parts[entry][order]
        begins = np.flatnonzero(first_of_each(both))
        asked, known = np.divmod(both[begins], max(1, self._count))
        within = [
            np.add.reduceat(part, begins, dtype=np.int64) if len(begins) else begins
            for part in kinds_of(parts)
        ]
        whole, prompt, answer, between = (
            held / np.maximum(every[known], 1)
            for held, every in zip(within, self._every, strict=True)
        )
        every = [each[known] for each in self._every]
        # A prompt too short for runs is in those that reach from it into the answer; a text has none.
        asked_for = np.where(every[1] > 0, prompt, np.where(every[3] > 0, between, 1.0))
        least = np.minimum(np.minimum(whole, answer), asked_for)
        quoted = (every[2] >= MIN_RUNS) & (least >= share)
        found = np.zeros(len(begins))
        for part, own in zip(kinds_of(parts)[:2], self._own, strict=True):
            held = (
                np.add.reduceat(part & telling, begins, dtype=np.int64) if len(begins) else begins
            )
            enough = held >= MIN_RUNS
            found[enough] = np.maximum(found[enough], held[enough] / own[known[enough]])
        shared = (found >= share) & ~quoted
        return Held(
            Pairs(asked[quoted], known[quoted], whole[quoted]),
            Pairs(asked[shared], known[shared], found[shared]),
        )

    def _total(self) -> None:
        """Count the runs of every text: all by part, and those that are in few other texts."""
        import numpy as np

        telling = np.repeat(self._telling, self._times)
        kinds = kinds_of(self._parts)
        self._every = [np.bincount(self._texts[kind], minlength=self._count) for kind in kinds]
        self._own = [
            np.bincount(self._texts[kind & telling], minlength=self._count) for kind in kinds[:2]
        ]

    def _found(self, texts: Sequence[str]) -> "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]":
        """Places of the set's runs in the texts, and the number of the text that holds each."""
        import numpy as np

        words = hashed_words(texts)
        runs, starts = runs_of(words, self._words)
        which, places = self._keys.found(runs)
        rows = np.searchsorted(words.offsets, starts[which], side="right") - 1
        return places, rows
