"""Find keys and personal data in text: where they stand, and the text with placeholders for them."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from tasks.personal_data.keys import keys
from tasks.personal_data.mail import mail_addresses
from tasks.personal_data.numbers import cards, ibans, phones

Kind = Literal["key", "email", "card", "iban", "phone"]
KINDS: tuple[Kind, ...] = ("key", "email", "card", "iban", "phone")
"""Of findings that overlap, the first kind in this order stands."""

# A key has eight letters or digits in a row; everything else that is looked for has an @ or seven
# digits. Most texts have neither, and are done with after this one look.
_ANYTHING = re.compile(r"@|\d(?:[ ()./\u00a0\u202f-]{0,3}\d){6}")


class Finding(NamedTuple):
    """What was found, and where: `text[start:stop]`."""

    kind: Kind
    start: int
    stop: int


class Detector:
    """Looks for `kinds`; phone numbers without their country's code are those of `phone_regions`."""

    def __init__(self, kinds: Iterable[Kind] = KINDS, phone_regions: Sequence[str] = ()) -> None:
        """`phone_regions` are countries as two capitals."""
        wanted = frozenset(kinds)
        regions = tuple(phone_regions)
        others: dict[Kind, Callable[[str], Iterator[tuple[int, int]]]] = {
            "email": mail_addresses,
            "card": cards,
            "iban": ibans,
            "phone": lambda text: phones(text, regions),
        }
        self._keys = "key" in wanted
        self._others = [(kind, search) for kind, search in others.items() if kind in wanted]

    def findings(self, text: str) -> list[Finding]:
        """What the text holds, in its order; no two overlap."""
        found = [Finding("key", *span) for span in _joined(keys(text))] if self._keys else []
        if self._others and _ANYTHING.search(text):
            for kind, search in self._others:
                for start, stop in search(text):
                    if all(stop <= f.start or f.stop <= start for f in found):
                        found.append(Finding(kind, start, stop))
        return sorted(found, key=lambda finding: finding.start)

    def redacted(self, text: str, seen: set[Kind] | None = None) -> str:
        """The text with a placeholder such as `[EMAIL]` for every finding; `seen` gains their kinds."""
        for finding in reversed(self.findings(text)):
            if seen is not None:
                seen.add(finding.kind)
            text = f"{text[: finding.start]}[{finding.kind.upper()}]{text[finding.stop :]}"
        return text


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans in their order; those that overlap are one: a key has a form and a name it is assigned to."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return joined
