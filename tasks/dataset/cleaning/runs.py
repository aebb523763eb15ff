"""Runs of words ("n-grams") that evaluation rows consist of, and how many of them a row holds."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MIN_RUNS = 6
"""With runs of 8 words, 13 words on end: the length by which GPT-3's authors looked for overlap
(arXiv 2005.14165, appendix C). Fewer are a figure of speech."""

# A word, or one sign of a script that writes without spaces.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)


class Pairs(NamedTuple):
    """Arrays of one length: texts asked about, texts of the set that they repeat, and how much."""

    asked: "npt.NDArray[np.int64]"
    known: "npt.NDArray[np.int64]"
    shares: "npt.NDArray[np.float64]"


class Runs:
    """An index of some texts' runs; asks of other texts which of the first they hold."""

    def __init__(
        self, texts: Sequence[str], owners: Sequence[int], words: int, common: int
    ) -> None:
        """Runs of `words` words that occur in the texts of more than `common` owners do not count:
        they are instructions and forms, not content. The same holds for runs that `meet` finds in
        many other texts.
        """
        import numpy as np

        self._words = words
        self._numbers: dict[str, int] = {}
        flat, starts = [], [0]
        for text in texts:
            # 0 is kept for words that no text has.
            flat += [
                self._numbers.setdefault(word, len(self._numbers) + 1)
                for word in _WORD.findall(text)
            ]
            starts.append(len(flat))
        runs, text_of = self._runs(flat, starts)
        pairs = np.unique(np.stack([runs, text_of.astype(np.uint64)]), axis=1)
        runs, text_of = pairs[0], pairs[1].astype(np.int64)
        by_owner = np.unique(
            np.stack([runs, np.asarray(owners, dtype=np.uint64)[text_of]]), axis=1
        )[0]
        values, counts = np.unique(by_owner, return_counts=True)
        telling = ~np.isin(runs, values[counts > common])
        self._runs_known, self._texts_of = runs[telling], text_of[telling]
        self._totals = np.bincount(self._texts_of, minlength=len(texts))
        self._distinct = np.unique(self._runs_known)
        self._met = np.zeros(len(self._distinct), dtype=np.uint32)

    @property
    def recognisable(self) -> list[int]:
        """Numbers of the texts that have enough runs of their own."""
        import numpy as np

        return [int(i) for i in np.flatnonzero(self._totals >= MIN_RUNS)]

    def meet(self, texts: Sequence[str]) -> None:
        """Count in how many other texts each run stands."""
        import numpy as np

        runs, rows = self._runs(*self._known_words(texts))
        places = np.searchsorted(self._distinct, runs)
        hit = np.flatnonzero(places < len(self._distinct))
        hit = hit[self._distinct[places[hit]] == runs[hit]]
        once = np.unique(rows[hit] * len(self._distinct) + places[hit])
        np.add.at(self._met, once % max(1, len(self._distinct)), 1)

    def leave_out_forms(self, common: int) -> None:
        """Runs that stand in more than `common` of the texts met do not count from now on."""
        import numpy as np

        forms = self._distinct[self._met > common]
        telling = ~np.isin(self._runs_known, forms)
        self._runs_known, self._texts_of = self._runs_known[telling], self._texts_of[telling]
        self._totals = np.bincount(self._texts_of, minlength=len(self._totals))

    def held(self, texts: Sequence[str], share: float) -> Pairs:
        """Which of the texts hold at least `share` of an indexed one's runs, and `MIN_RUNS` of them."""
        import numpy as np

        runs, rows = self._runs(*self._known_words(texts))
        left = np.searchsorted(self._runs_known, runs, side="left")
        right = np.searchsorted(self._runs_known, runs, side="right")
        hit = right > left
        pairs = np.unique(np.stack([rows[hit], left[hit], right[hit]]), axis=1)
        times = pairs[2] - pairs[1]
        row_of = np.repeat(pairs[0], times)
        place = np.repeat(pairs[1] - (np.cumsum(times) - times), times) + np.arange(times.sum())
        both, held = np.unique(
            np.stack([row_of, self._texts_of[place]]), axis=1, return_counts=True
        )
        shares = held / self._totals[both[1]]
        enough = np.flatnonzero((held >= MIN_RUNS) & (shares >= share))
        return Pairs(both[0][enough], both[1][enough], shares[enough])

    def _known_words(self, texts: Sequence[str]) -> tuple[list[int], list[int]]:
        """Numbers of all words, 0 for those that no indexed text has, and where each text begins."""
        flat: list[int] = []
        starts = [0]
        number = self._numbers.get
        for text in texts:
            flat += [number(word, 0) for word in _WORD.findall(text)]
            starts.append(len(flat))
        return flat, starts

    def _runs(
        self, flat: Sequence[int], starts: Sequence[int]
    ) -> "tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]":
        """Hashes of all runs of known words, and the number of the text that each belongs to."""
        import numpy as np

        words = np.asarray(flat, dtype=np.uint64)
        count = max(0, len(words) - self._words + 1)
        hashes = np.zeros(count, dtype=np.uint64)
        known = np.ones(count, dtype=np.bool_)
        for i in range(self._words):
            part = words[i : i + count]
            known &= part != 0
            hashes = (hashes ^ part) * np.uint64(0x9E3779B97F4A7C15)
            hashes ^= hashes >> np.uint64(32)
        bounds = np.asarray(starts)
        text_of = np.searchsorted(bounds, np.arange(count), side="right") - 1
        whole = known & (np.arange(count) + self._words <= bounds[text_of + 1])
        return hashes[whole], text_of[whole]
