"""What a table's reading found, filled while rows go by."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TableCounts:
    """Counts and the detected mapping of one source; complete when its last row was read."""

    kinds: dict[str, int] = field(default_factory=dict)
    """Files by how they are written: `jsonl`, `csv.gz`, ..."""
    chat_format: str = ""
    """Name of the chat format, or `columns` for the recipe's own templates."""
    mapping: dict[str, str] = field(default_factory=dict)
    """Part of a row -> the columns (or the template) that it is made of."""
    lines: int = 0
    """Lines of text files, rows of tables."""
    blank_lines: int = 0
    rows: int = 0
    """Conversations; one line of `instruction/instances` may hold several."""
    bad_rows: int = 0
    ignored_columns: tuple[str, ...] = ()
    unused_keys: set[str] = field(default_factory=set)
    """Keys of messages that nothing is made of, as `messages[].name`."""
    delimiters: set[str] = field(default_factory=set)
    """What parts the fields of the source's CSV files."""

    def as_json(self) -> dict[str, Any]:
        """For the dataset's card."""
        found: dict[str, Any] = {
            "chat_format": self.chat_format,
            "mapping": self.mapping,
            "files": sum(self.kinds.values()),
            "file_kinds": dict(sorted(self.kinds.items())),
            "lines": self.lines,
            "blank_lines": self.blank_lines,
            "rows": self.rows,
            "bad_rows": self.bad_rows,
            "ignored_columns": [*self.ignored_columns, *sorted(self.unused_keys)],
        }
        if self.delimiters:
            found["delimiters"] = sorted(self.delimiters)
        return found
