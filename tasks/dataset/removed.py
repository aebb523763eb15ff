"""The rows that were left out on the way: counted by reason, the first of each listed in `removed.jsonl`."""

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

LISTED = 100_000
"""Rows of each reason in the list: enough to look for one, and never as large as the data."""


class Removed:
    """Write down each row that is left out; a step's reasons stay in the order of the steps."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._stream = self._path.open("wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()
        if not self.counts:
            self._path.unlink()

    def add(self, reason: str, line: bytes, detail: str | None = None) -> None:
        """Count a row, given as its line; `detail` is what the reason refers to."""
        self.counts[reason] += 1
        if self.counts[reason] > LISTED:
            return
        row = orjson.loads(line)
        told = {"reason": reason, "id": row["id"], "source": row["source"]}
        if detail:
            told["detail"] = detail
        self._stream.write(orjson.dumps(told) + b"\n")
