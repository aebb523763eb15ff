"""Find card numbers, IBANs and phone numbers, by the rules of those who issue them."""

import re
from collections.abc import Iterator, Sequence

_SPACE = "[ \u00a0\u202f]"
_CARD = re.compile(
    r"(?<![\w.,+/-])(?:"
    # Groups as they are printed, four by four or American Express's, parted by one sign throughout.
    rf"\d{{4}}(?P<four>{_SPACE}|[.-])\d{{4}}(?P=four)\d{{4}}(?P=four)\d{{1,7}}"
    rf"|\d{{4}}(?P<six>{_SPACE}|[.-])\d{{6}}(?P=six)\d{{4,5}}"
    rf"|\d(?:(?:{_SPACE}|-)?\d){{11,18}}"
    r")(?![\w/=-]|[.,]\d)"
)
_NO_DIGIT = re.compile(r"\D")
_CARD_BRANDS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}"  # Visa
    r"|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|[689]\d)\d{11}"  # Diners Club
    r"|(?:6011|65\d{2}|64[4-9]\d)\d{12,15}"  # Discover
    r"|35(?:2[89]|[3-8]\d)\d{12}"  # JCB
    r"|62\d{14,17}"  # UnionPay
)
_IBAN = re.compile(
    r"(?<![\w/+=-])[A-Za-z]{2}\d{2}(?:[ \u00a0-]?[A-Za-z0-9]{4}){2,7}(?:[ \u00a0-]?[A-Za-z0-9]{1,3})?"
    r"(?![\w/+=])"
)
_LAST_GROUP = re.compile(r"[ \u00a0-][A-Za-z0-9]+\Z")
_SHORTEST_IBAN = 15
# Not behind a letter or digit: there + adds.
_PLUS = re.compile(r"(?<!\w)[+\uff0b](?=[ (]{0,2}\d)")
# The prefix of calls abroad, at the beginning of a number. Two zeros of a figure's are within one.
_ABROAD = re.compile(r"(?<![\w+.,:/-])(?<!\d[ \u00a0])00(?=[1-9]\d{0,2}[ ()/-])")
_LONGEST_PHONE = 60
"""Characters, with spaces and an extension."""


def cards(text: str) -> Iterator[tuple[int, int]]:
    """(start, stop) of digits with an issuer's prefix and length and the check digit of ISO/IEC 7812-1."""
    for match in _CARD.finditer(text):
        digits = _NO_DIGIT.sub("", match[0])
        # Zeros, and the like, have right check digits too.
        if len(set(digits)) > 1 and _CARD_BRANDS.fullmatch(digits) and _luhn(digits):
            yield match.span()


def ibans(text: str) -> Iterator[tuple[int, int]]:
    """(start, stop) of account numbers with their country's length and form and right check digits.

    ISO 13616, with the registry that `python-stdnum` packs.
    """
    for match in _IBAN.finditer(text):
        account = match[0]
        # A word that follows may have a group's length.
        while len(account) >= _SHORTEST_IBAN:
            if _is_iban(account):
                yield match.start(), match.start() + len(account)
                break
            shorter = _LAST_GROUP.sub("", account)
            if shorter == account:
                break
            account = shorter


def phones(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(start, stop) of numbers that Google's libphonenumber holds for valid ones.

    They begin with + or 00 and a country's code, or are written as in one of `regions`.
    """
    plus = [match.start() for match in _PLUS.finditer(text)]
    abroad = [match.start() for match in _ABROAD.finditer(text)]
    if not (plus or abroad or regions):
        return
    # Its tables of all countries take a tenth of a second: only for text that may need them.
    from phonenumbers import Leniency, PhoneNumberMatcher

    for start in plus:
        number = text[start : start + _LONGEST_PHONE]
        for match in PhoneNumberMatcher(number, None, leniency=Leniency.VALID, max_tries=1):
            # A sum has a space behind its +, and no groups of digits.
            added = match.raw_string[1:2] == " " and match.raw_string[2:].isdigit()
            if match.start == 0 and not added and not _is_decimal(number, 0, match.end):
                yield start, start + match.end
    for start in abroad:
        number = "+" + text[start + 2 : start + _LONGEST_PHONE]
        for match in PhoneNumberMatcher(
            number, None, leniency=Leniency.STRICT_GROUPING, max_tries=1
        ):
            if match.start == 0:
                yield start, start + match.end + 1
    for region in regions:
        for match in PhoneNumberMatcher(text, region, leniency=Leniency.STRICT_GROUPING):
            # Grouped, as people write numbers: ten digits in a row are a figure. With a + it was
            # judged above.
            if not (
                match.raw_string.isdigit()
                or match.raw_string[0] in "+\uff0b"
                or _is_decimal(text, match.start, match.end)
            ):
                yield match.start, match.end


def _luhn(digits: str) -> bool:
    from stdnum import luhn

    return bool(luhn.is_valid(digits))


def _is_iban(account: str) -> bool:
    from stdnum import iban

    # The check digits of the national number within are not always set by the banks.
    return bool(iban.is_valid(account.replace("\u00a0", ""), check_country=False))


def _is_decimal(text: str, start: int, stop: int) -> bool:
    """Whether `text[start:stop]` is a number with decimals, or what stands before their point."""
    return re.match(r"[+-]? ?\d+[.,]\d+(?![\d.,-])", text[start : stop + 20]) is not None
