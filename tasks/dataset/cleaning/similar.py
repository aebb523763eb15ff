"""Texts that resemble one of a given set, by MinHash over what is not common to many of the set."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tasks.dataset.cleaning.runs import Held
from tasks.dataset.cleaning.shingles import estimated, hashed, sketches, slots_needed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SLOTS = 256
_MIN_SHINGLES = 60
"""Of fewer pieces of text a similarity says nothing: "What is 3 + 1?" resembles "What is 4 + 1?" and does
not repeat it."""
_PHRASE = (0, 5, 10, 15, 19)
"""Shingles that together cover 24 characters: what many texts share at that length is a form, while
single shingles are common to all texts of a language."""
_AT_ONCE = 1024
_COMPARE_AT_ONCE = 8192


class Similar:
    """Sketches of a set of texts, ready to be asked. Takes a kilobyte for each of them."""

    def __init__(self, texts: Sequence[str], common: int) -> None:
        """Phrases in more than `common` of the texts do not count."""
        import numpy as np

        # A fixed table of counts, about one place for each character: the few phrases that share
        # their place with others count a little too much, in the set and in what is asked alike.
        size = sum(map(len, texts))
        self._shift = np.uint64(64 - min(26, max(16, size.bit_length())))
        counts = np.zeros(1 << (64 - int(self._shift)), dtype=np.uint8)
        for part in _parts(texts):
            places, text_of = self._phrases(*hashed(part))
            for text in np.split(places, np.searchsorted(text_of, np.arange(1, len(part)))):
                seen = np.unique(text[text >= 0])
                counts[seen] += counts[seen] < 255
        self._common = counts > common
        sketched = [self._sketched(part) for part in _parts(texts)]
        self._sketches = np.concatenate(
            [np.empty((0, _SLOTS), dtype=np.uint8), *(made for made, _ in sketched)]
        )
        enough = np.concatenate([np.empty(0, dtype=np.bool_), *(given for _, given in sketched)])
        self.recognisable = set(np.flatnonzero(enough).tolist())
        """Numbers of the texts that have enough of their own."""
        self._known = np.flatnonzero(enough)
        bands = self._sketches[self._known].view(np.uint32)
        self._orders = [np.argsort(bands[:, band], kind="stable") for band in range(bands.shape[1])]
        self._keys = [bands[order, band] for band, order in enumerate(self._orders)]

    def found(self, texts: Sequence[str], similarity: float) -> list[Held | None]:
        """For each text the most similar one of the set; None below `similarity`."""
        import numpy as np

        result: list[Held | None] = [None] * len(texts)
        if not len(self._known) or not texts:
            return result
        asked, enough = self._sketched(texts)
        rows, known = self._candidates(asked, np.flatnonzero(enough))
        needed = slots_needed(similarity, _SLOTS)
        for start in range(0, len(rows), _COMPARE_AT_ONCE):
            part = slice(start, start + _COMPARE_AT_ONCE)
            equal = np.count_nonzero(asked[rows[part]] == self._sketches[known[part]], axis=1)
            for i in np.flatnonzero(equal >= needed).tolist():
                row = int(rows[start + i])
                share = estimated(int(equal[i]), _SLOTS)
                best = result[row]
                if best is None or share > best.share:
                    result[row] = Held(int(known[start + i]), share)
        return result

    def _candidates(
        self, asked: "npt.NDArray[np.uint8]", rows: "npt.NDArray[np.int64]"
    ) -> "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]":
        """Pairs (text asked, text of the set) that share a band of four slots, sorted, each once.

        64 bands of four find 98 % of pairs with a similarity of 0.5.
        """
        import numpy as np

        bands = asked[rows].view(np.uint32)
        pairs: set[tuple[int, int]] = set()
        for band, (keys, order) in enumerate(zip(self._keys, self._orders, strict=True)):
            left = np.searchsorted(keys, bands[:, band], side="left")
            right = np.searchsorted(keys, bands[:, band], side="right")
            for i in np.flatnonzero(right > left).tolist():
                row = int(rows[i])
                pairs.update((row, int(self._known[k])) for k in order[left[i] : right[i]])
        chosen = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
        return chosen[:, 0], chosen[:, 1]

    def _sketched(
        self, texts: Sequence[str]
    ) -> "tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]":
        """Sketches over the shingles that count, and which texts have enough of those."""
        import numpy as np

        hashes, offsets = hashed(texts)
        places, _ = self._phrases(hashes, offsets)
        common = self._common[places] & (places >= 0)
        # A common phrase takes all shingles with it that it covers.
        starts = np.flatnonzero(common)
        covered = np.zeros(len(hashes) + 1, dtype=np.int32)
        np.add.at(covered, starts, 1)
        np.add.at(covered, starts + _PHRASE[-1] + 1, -1)
        counts = np.cumsum(covered[:-1]) == 0
        before = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
        kept = before[offsets.astype(np.int64)]
        return sketches(hashes[counts], kept, _SLOTS), np.diff(kept) >= _MIN_SHINGLES

    def _phrases(
        self, hashes: "npt.NDArray[np.uint64]", offsets: "npt.NDArray[np.uint64]"
    ) -> "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]":
        """For each shingle the place in the table of the phrase that it begins (-1: its text ends
        before), and the number of its text.
        """
        import numpy as np

        lengths = (offsets[1:] - offsets[:-1]).astype(np.int64)
        text_of = np.repeat(np.arange(len(lengths)), lengths)
        places = np.full(len(hashes), -1, dtype=np.int64)
        count = len(hashes) - _PHRASE[-1]
        if count > 0:
            phrases = np.zeros(count, dtype=np.uint64)
            for i in _PHRASE:
                phrases = (phrases ^ hashes[i : i + count]) * np.uint64(0x9E3779B97F4A7C15)
            inside = text_of[:count] == text_of[_PHRASE[-1] :]
            places[:count][inside] = (phrases[inside] >> self._shift).astype(np.int64)
        return places, text_of


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), _AT_ONCE):
        yield texts[start : start + _AT_ONCE]
