"""Keys and personal data in rows: report them, redact them, or leave out the row."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tasks.dataset.cleaning.rewriting import rewritten, texts
from tasks.dataset.cleaning_settings import PersonalDataSettings
from tasks.dataset.rows import Row, short_hash
from tasks.personal_data.detector import Detector, Kind

_OUR_GROUP = re.compile("(?:prompt|text|instruction)-(?=.*[a-f])[0-9a-f]{16}")
"""A default group, which is a hash; `prompt-` may also be a column's name, with a card number behind it."""


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
        return self._masked(row, set()), Counter(beside)

    def masked(self, row: Row) -> Row:
        """The row with placeholders, whatever the policy: for lists that people read. The name of its
        file, which the row itself keeps, is masked too.
        """
        safe = self._masked(row, set())
        return replace(safe, source=self.masked_name(row.source))

    def masked_name(self, name: str) -> str:
        """The name of a file, or `file:line`, with placeholders."""
        return "/".join(map(self._masked_part, name.split("/")))

    def masked_value(self, value: Any, seen: set[Kind] | None = None) -> Any:
        """JSON with placeholders in its texts; names of fields stay. `seen` gains what was found."""
        if isinstance(value, str):
            return self._detector.redacted(value, seen)
        if isinstance(value, list | tuple):
            return [self.masked_value(item, seen) for item in value]
        if isinstance(value, dict):
            return {key: self.masked_value(item, seen) for key, item in value.items()}
        return value

    def _masked_part(self, name: str) -> str:
        masked = self._detector.redacted(name)
        stem, dot, suffix = masked.rpartition(".")
        # An address with a suffix behind it is none: `max@firma.de.jsonl`.
        return f"{self._masked_part(stem)}.{suffix}" if dot and "@" in stem else masked

    def _masked(self, row: Row, seen: set[Kind]) -> Row:
        safe = rewritten(row, lambda text: self._detector.redacted(text, seen))
        beside: dict[str, Any] = {
            name: self.masked_value(value, seen)
            for name in ("label", "slice", "tools")
            if (value := getattr(row, name))
        }
        if "tools" in beside:
            beside["tools"] = tuple(beside["tools"])
        if kinds := self._kinds(_group_texts(row.group)):
            seen |= kinds
            beside["group"] = f"group-{short_hash(row.group)}"
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
    yield from _group_texts(row.group)
    for text in (row.label, row.slice):
        if text is not None:
            yield text


def _group_texts(group: str) -> Iterator[str]:
    """Where a group that the recipe's column gives may name a person: `COLUMN-VALUE`, and the value alone."""
    if not _OUR_GROUP.fullmatch(group):
        yield group
        # A number behind the hyphen would be taken for the middle of something longer.
        yield group.partition("-")[2]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
