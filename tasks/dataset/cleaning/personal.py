"""Keys and personal data in rows: find them, and report, redact or leave out the row."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from tasks.dataset.cleaning import patterns
from tasks.dataset.cleaning.rewriting import rewritten, texts
from tasks.dataset.cleaning_settings import PersonalDataSettings, PersonalKind
from tasks.dataset.rows import Row


class Finding(NamedTuple):
    """What was found, and where: `text[start:stop]`."""

    kind: PersonalKind
    start: int
    stop: int


class Detector:
    """Finds what the settings name. Phone numbers are judged by Google's libphonenumber."""

    def __init__(self, settings: PersonalDataSettings) -> None:
        self._settings = settings
        self._kinds = frozenset(settings.kinds)
        # Of findings that overlap, the first kind in this order stands.
        self._searches = [
            search
            for kind, search in (
                ("key", _keys),
                ("email", _emails),
                ("card", _cards),
                ("iban", _ibans),
                ("phone", self._phones),
            )
            if kind in self._kinds
        ]

    def findings(self, text: str) -> list[Finding]:
        """What the text holds, in its order; no two overlap."""
        found: list[Finding] = []
        for search in self._searches:
            for finding in search(text):
                if all(finding.stop <= f.start or f.stop <= finding.start for f in found):
                    found.append(finding)
        return sorted(found, key=lambda finding: finding.start)

    def applied(self, row: Row) -> tuple[Row | None, Counter[str]]:
        """The row after the policy (None: it is to be left out), and each kind found once.

        By `redact`, a placeholder such as `[EMAIL]` stands for every finding in any message.
        """
        kinds = {finding.kind for text in texts(row) for finding in self.findings(text)}
        if not kinds or self._settings.policy == "report":
            return row, Counter(kinds)
        if self._settings.policy == "drop":
            return None, Counter(kinds)
        return self.masked(row), Counter(kinds)

    def masked(self, row: Row) -> Row:
        """The row with placeholders, whatever the policy: for lists that people read."""
        return rewritten(row, self.redacted)

    def redacted(self, text: str) -> str:
        """The text with a placeholder for every finding."""
        for finding in reversed(self.findings(text)):
            text = f"{text[: finding.start]}[{finding.kind.upper()}]{text[finding.stop :]}"
        return text

    def _phones(self, text: str) -> Iterator[Finding]:
        if not patterns.DIGITS.search(text):
            return
        # Its tables of all countries take a tenth of a second: only for text that may need them.
        from phonenumbers import Leniency, PhoneNumberMatcher

        if patterns.INTERNATIONAL.search(text):
            for match in PhoneNumberMatcher(text, None, leniency=Leniency.VALID):
                if not patterns.is_decimal(text, match.start, match.end):
                    yield Finding("phone", match.start, match.end)
        for region in self._settings.phone_regions:
            for match in PhoneNumberMatcher(text, region, leniency=Leniency.STRICT_GROUPING):
                # Grouped, as people write numbers: ten digits in a row are a figure.
                if not match.raw_string.isdigit() and not patterns.is_decimal(
                    text, match.start, match.end
                ):
                    yield Finding("phone", match.start, match.end)


def _keys(text: str) -> Iterator[Finding]:
    # Looking for fixed parts first is ten times faster than the expression.
    if any(part in text for part in patterns.KEY_PARTS):
        for match in patterns.KEY.finditer(text):
            yield Finding("key", *match.span())
    for match in patterns.QUOTED.finditer(text):
        if patterns.is_secret(match[1]) and patterns.ASSIGNED.search(
            text[max(0, match.start() - 60) : match.start()]
        ):
            yield Finding("key", *match.span(1))
    if "://" in text and "@" in text:
        for match in patterns.URL_PASSWORD.finditer(text):
            if patterns.is_password(match[1]):
                yield Finding("key", *match.span(1))


def _emails(text: str) -> Iterator[Finding]:
    if "@" in text:
        for match in patterns.EMAIL.finditer(text):
            before = text[max(0, match.start() - 70) : match.start()]
            if patterns.is_persons_address(match[0]) and not patterns.IN_URL.search(before):
                yield Finding("email", *match.span())


def _cards(text: str) -> Iterator[Finding]:
    if patterns.DIGITS.search(text):
        for match in patterns.CARD.finditer(text):
            if patterns.is_card(match[0]):
                yield Finding("card", *match.span())


def _ibans(text: str) -> Iterator[Finding]:
    if patterns.DIGITS.search(text):
        for match in patterns.IBAN.finditer(text):
            if patterns.is_iban(match[0]):
                yield Finding("iban", *match.span())
