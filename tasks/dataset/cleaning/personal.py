"""Keys and personal data in rows: report them, redact them, or leave out the row."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tasks.dataset.cleaning.rewriting import rewritten, texts
from tasks.dataset.cleaning_settings import PersonalDataSettings
from tasks.dataset.rows import Row, short_hash
from tasks.personal_data.detector import Detector, Kind

_OUR_GROUPS = ("prompt-", "text-")
"""How the default groups begin, which are hashes."""


class PersonalData:
    """What the settings want done with what is found in a row."""

    def __init__(self, settings: PersonalDataSettings) -> None:
        self._policy = settings.policy
        self._detector = Detector(settings.kinds, settings.phone_regions)

    def applied(self, row: Row) -> tuple[Row | None, Counter[str]]:
        """The row after the policy (None: it is to be left out), and each kind found once.

        By `redact`, a placeholder such as `[EMAIL]` stands for every finding in any message, tool,
        label and slice, and a hash for a group that names a person: its rows stay together. By `drop`
        only messages and tools decide: customers' addresses as groups must not cost every row.
        """
        if self._policy == "redact":
            seen: set[Kind] = set()
            safe = self._masked(row, seen)
            return (safe if seen else row), Counter(seen)
        said = self._kinds(_said(row))
        beside = self._kinds(_beside(row))
        if self._policy == "report" or not (said or beside):
            return row, Counter(said | beside)
        if said:
            return None, Counter(said)
        return self.masked(row), Counter(beside)

    def masked(self, row: Row) -> Row:
        """The row with placeholders, whatever the policy: for lists that people read."""
        return self._masked(row, set())

    def masked_value(self, value: Any, seen: set[Kind] | None = None) -> Any:
        """JSON with placeholders in its texts; names of fields stay. `seen` gains what was found."""
        if isinstance(value, str):
            return self._detector.redacted(value, seen)
        if isinstance(value, list | tuple):
            return [self.masked_value(item, seen) for item in value]
        if isinstance(value, dict):
            return {key: self.masked_value(item, seen) for key, item in value.items()}
        return value

    def _masked(self, row: Row, seen: set[Kind]) -> Row:
        safe = rewritten(row, lambda text: self._detector.redacted(text, seen))
        beside: dict[str, Any] = {
            name: self.masked_value(value, seen)
            for name in ("label", "slice", "tools")
            if (value := getattr(row, name))
        }
        if "tools" in beside:
            beside["tools"] = tuple(beside["tools"])
        if not row.group.startswith(_OUR_GROUPS):
            before = row.group
            if self._detector.redacted(before, seen) != before:
                beside["group"] = f"group-{short_hash(before)}"
        return replace(safe, **beside) if beside else safe

    def _kinds(self, said: Iterator[str]) -> set[Kind]:
        return {finding.kind for text in said for finding in self._detector.findings(text)}


def _said(row: Row) -> Iterator[str]:
    """What is in the row's messages and tools."""
    yield from texts(row)
    for tool in row.tools:
        yield from _strings(tool)


def _beside(row: Row) -> Iterator[str]:
    """What the row is counted and kept together by."""
    if not row.group.startswith(_OUR_GROUPS):
        yield row.group
    for text in (row.label, row.slice):
        if text is not None:
            yield text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
