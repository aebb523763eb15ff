"""The rows of all sources that a person must correct."""

from tasks.errors import DataError

SHOWN_BAD_ROWS = 20


class BadRows:
    """Collects every bad row of all sources, so that one error shows them together."""

    def __init__(self) -> None:
        self.count = 0
        self._shown: list[str] = []

    def add(self, where: str, reason: str) -> None:
        """Remember a bad row; `where` is `file:line`."""
        self.count += 1
        if len(self._shown) < SHOWN_BAD_ROWS:
            self._shown.append(f"{where}: {reason}")

    def raise_if_any(self) -> None:
        """Raise DataError with the first rows and the number of all."""
        if not self.count:
            return
        head = "1 row is wrong:" if self.count == 1 else f"{self.count} rows are wrong:"
        more = self.count - len(self._shown)
        lines = [head, *(f"  {line}" for line in self._shown)]
        if more:
            lines.append(f"  ... and {more} more")
        lines.append("Correct them or take them out; nothing was prepared.")
        raise DataError("\n".join(lines))
