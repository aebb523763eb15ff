"""What the rows of one side are like: lengths, turns, slices, and a sample's words."""

import re
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import orjson

from tasks.dataset.cleaning.filters import Languages
from tasks.dataset.rows import Row
from tasks.dataset.split import smallest
from tasks.dataset.spool import Spool, from_line
from tasks.quantiles import quantiles

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SAMPLED_ROWS = 5_000
JUDGED_ROWS = 500
SHOWN_ROWS = 3
WORD_BUCKETS = 512
_WORDS_HELD = 50_000
_LANGUAGES = Languages()
_WORD = re.compile(r"[^\W\d_]{2,}")
"""Letters only: numbers and identifiers of a row's own would look like a new language."""


@dataclass
class Profile:
    """Counts of one side; no text but the rows that stand for it."""

    rows: int
    groups: int
    characters: dict[str, dict[str, int]]
    """`prompt` and `answer` -> quantiles in characters."""
    lengths: dict[str, list[int]]
    """`prompt` and `answer` -> rows by the power of two of their characters: 0, 1, 2-3, 4-7, ..."""
    turns: dict[int, int]
    """Messages in a conversation -> rows; 16 stands for more, too."""
    slices: Counter[str] = field(default_factory=Counter)
    words: list[int] = field(default_factory=lambda: [0] * WORD_BUCKETS)
    """Words of the sample by their hash: enough to see that the language has changed."""
    sampled: frozenset[int] = frozenset()
    """Positions of the rows whose words are counted, chosen by their hash."""
    judged: frozenset[int] = frozenset()
    """Positions of the rows whose language is told."""
    languages: Counter[str] = field(default_factory=Counter)
    """Of the judged rows' answers: ISO 639-1 code, or `undecided`."""
    samples: frozenset[int] = frozenset()
    """Positions of the rows that are shown."""
    shown: list[Row] = field(default_factory=list)
    _met: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, spool: Spool, places: "npt.NDArray[np.int64]") -> Self:
        """Of the rows at these positions; `see` completes it."""
        import numpy as np

        prompt = spool.column("prompt_characters")[places]
        answer = spool.column("answer_characters")[places]
        turns, counts = np.unique(np.minimum(spool.column("turns")[places], 16), return_counts=True)
        ids = spool.column("id")[places]
        return cls(
            rows=len(places),
            groups=len(np.unique(spool.column("group")[places])),
            characters={"prompt": quantiles(prompt.tolist()), "answer": quantiles(answer.tolist())},
            lengths={"prompt": _by_power(prompt), "answer": _by_power(answer)},
            turns=dict(zip(turns.tolist(), counts.tolist(), strict=True)),
            samples=frozenset(places[smallest(ids, SHOWN_ROWS)].tolist()),
            sampled=frozenset(places[smallest(ids, SAMPLED_ROWS)].tolist()),
            judged=frozenset(places[smallest(ids, JUDGED_ROWS)].tolist()),
        )

    def see(self, position: int, line: bytes, source: str) -> None:
        """Take note of the row's text; `source` names its slice where the row names none."""
        if b'"slice":' in line:
            source = orjson.loads(line).get("slice") or source
        self.slices[source] += 1
        if position in self.samples:
            self.shown.append(from_line(line))
        if position in self.judged:
            self.languages[_LANGUAGES.of_row(from_line(line))] += 1
        if position in self.sampled:
            row = orjson.loads(line)
            for text in (row.get("text"), *(m.get("content") for m in row["messages"])):
                self._met.update(_WORD.findall(str(text or "").casefold()))
            if len(self._met) > _WORDS_HELD:
                self._sort_words()

    def _sort_words(self) -> None:
        """Put the words met so far into their buckets."""
        for word, count in self._met.items():
            self.words[zlib.crc32(word.encode()) % WORD_BUCKETS] += count
        self._met.clear()

    def facts(self) -> dict[str, Any]:
        """As JSON, for the card and for the comparison with a later dataset."""
        self._sort_words()
        return {
            "rows": self.rows,
            "groups": self.groups,
            "characters": self.characters,
            "lengths": self.lengths,
            "turns": {str(turns): rows for turns, rows in self.turns.items()},
            "slices": dict(sorted(self.slices.items())),
            "languages": dict(self.languages.most_common()),
            "words": self.words,
        }


def _by_power(values: "npt.NDArray[Any]") -> list[int]:
    import numpy as np

    # frexp gives the power of two above a number: 0 -> 0, 1 -> 1, 2 and 3 -> 2, 4 to 7 -> 3.
    powers = np.frexp(values.astype(np.float64))[1]
    return [int(count) for count in np.bincount(powers, minlength=1)]
