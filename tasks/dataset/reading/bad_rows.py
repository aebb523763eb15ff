"""The rows of all sources that a person must correct, or that the recipe lets pass into quarantine."""

import json
from pathlib import Path
from typing import IO, Any

from tasks.errors import DataError

SHOWN_BAD_ROWS = 20
QUARANTINED_CHARACTERS = 100_000
"""Of a bad row's text: enough to find and mend it, and a line without end fills no disk."""


class BadRows:
    """Collects every bad row of all sources, so that one error shows them together.

    `max_bad_rows` allows that many (a whole number), or that share of the rows read (below 1). Where
    some are allowed they are written to the JSONL file `quarantine`, `{"where", "reason", "row"}` each.
    """

    def __init__(self, max_bad_rows: int | float = 0, quarantine: Path | None = None) -> None:
        self.count = 0
        self.read = 0
        """Rows seen so far, good and bad; sources count theirs here."""
        self._allowed = max_bad_rows
        self._quarantine = quarantine if max_bad_rows else None
        self._stream: IO[str] | None = None
        self._shown: list[str] = []

    def add(self, where: str, reason: str, raw: Any = None, *, name: str | None = None) -> None:
        """Remember a bad row; `where` is `file:line`, `raw` its text or its columns.

        `name` is the same place free of folders, which differ between machines: it goes into the
        quarantine.
        """
        self.count += 1
        if len(self._shown) < SHOWN_BAD_ROWS:
            self._shown.append(f"{where}: {reason}")
        # Beyond a whole number the run has failed already; a share is known at the end only.
        if self._quarantine is not None and (self._allowed < 1 or self.count <= self._allowed):
            self._write({"where": name or where, "reason": reason, "row": _shortened(raw)})

    def raise_if_any(self) -> None:
        """Raise DataError with the first rows and the number of all, if there are more than allowed.

        Ends the collection: the quarantine file is complete afterwards.
        """
        self.close()
        if self.count <= self.allowed_count:
            return
        head = "1 row is wrong:" if self.count == 1 else f"{self.count} rows are wrong:"
        more = self.count - len(self._shown)
        lines = [head, *(f"  {line}" for line in self._shown)]
        if more:
            lines.append(f"  ... and {more} more")
        lines.append(self._ways_out())
        raise DataError("\n".join(lines))

    def raise_if_all(self) -> None:
        """Raise DataError when no row is good, however many may be bad.

        To be called after `raise_if_any`.
        """
        if not self.count or self.count < self.read:
            return
        shown = "\n".join(f"  {line}" for line in self._shown)
        raise DataError(
            f"All {self.count:,} rows are bad, and none is left to prepare, though dataset.max_bad_rows is "
            f"{self._allowed}:\n{shown}\nCorrect them, or dataset.sources[]: the format, chat_format or "
            "columns may not be what the rows have."
        )

    @property
    def allowed_count(self) -> int:
        """How many rows may be bad, given how many were read."""
        if self._allowed < 1:
            return int(self._allowed * self.read)
        return int(self._allowed)

    def close(self) -> None:
        """Finish the quarantine file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _ways_out(self) -> str:
        if not self._allowed:
            return (
                "Correct them or take them out, or let dataset.max_bad_rows move so many into "
                "quarantine.jsonl; nothing was prepared."
            )
        share = f" of {self.read:,} rows read" if self._allowed < 1 else ""
        return (
            f"dataset.max_bad_rows is {self._allowed}, which allows {self.allowed_count:,}{share}. "
            "Correct them, take them out or raise it; nothing was prepared."
        )

    def _write(self, entry: dict[str, Any]) -> None:
        if self._stream is None:
            assert self._quarantine is not None
            self._stream = self._quarantine.open("w", encoding="utf-8")
        # ASCII: half of a surrogate pair may be what is wrong with the row.
        self._stream.write(json.dumps(entry, default=str) + "\n")


def _shortened(raw: Any) -> Any:
    if isinstance(raw, bytes):
        raw = raw[: 4 * QUARANTINED_CHARACTERS].decode("utf-8", "replace").rstrip("\r\n")
    if isinstance(raw, str):
        return raw[:QUARANTINED_CHARACTERS]
    if raw is not None:
        try:
            text = json.dumps(raw, default=str)
        except (RecursionError, ValueError):
            return "(nested too deep to be shown)"
        if len(text) > QUARANTINED_CHARACTERS:
            return text[:QUARANTINED_CHARACTERS]
    return raw
