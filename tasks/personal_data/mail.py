"""Find mail addresses that may be somebody's, and leave code with an @ in it alone.

A domain must be one that can be registered: the Public Suffix List, as `publicsuffixlist` packs it,
says so without a network. `W @ x.shape` without its spaces has the form of an address, and no such
domain.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

# Latin with its accents, Greek, Cyrillic. Where words have no spaces, letters of other scripts around
# an address are not part of it.
_LETTER = "A-Za-z0-9\u00c0-\u024f\u0370-\u052f"
_LABEL = rf"[{_LETTER}](?:[{_LETTER}-]{{0,61}}[{_LETTER}])?"
_LOCAL = re.compile(
    # O'Brien and j.d'angelo, and no quotation mark behind a prefix of Python's strings.
    rf"(?<![{_LETTER}._%+@/-])(?:(?:[{_LETTER}]{{1,20}}\.)?[dlmnoDLMNO]')?[{_LETTER}](?:[{_LETTER}._%+-]{{0,62}}[{_LETTER}_])?\Z"
)
_DOMAIN = re.compile(
    rf"(?:{_LABEL}\.){{1,8}}[A-Za-z\u00c0-\u024f\u0370-\u052f][{_LETTER}-]{{1,23}}"
    rf"(?![{_LETTER}-]|\.[{_LETTER}]|[(\[])"
)
_SENTENCE = re.compile(r"\.[A-Z\u00c0-\u00de][^.]*\Z")
"""A last label that begins with a capital: a sentence whose space is missing."""
_LONGEST_LOCAL = 70
_IN_URL = re.compile(r"://[^\s/@]{0,64}\Z")
"""Before what looks like a mail address: it is the name and password of a URL."""
# RFC 2606 and RFC 6761: names that belong to nobody. Documentation is full of them.
_RESERVED = re.compile(
    r"(?i)(?:.*[.@])?(?:example\.(?:com|net|org)|[^@]*\.?(?:example|test|invalid|localhost|local))"
)
_ROLES = frozenset({"git", "noreply", "no-reply", "donotreply", "do-not-reply"})
_CODE = frozenset({"self", "cls", "this"})
_ATTRIBUTES = frozenset({"data", "name", "map", "zip"})
"""Top-level domains under which nearly nobody has mail, and which are attributes in code."""


def mail_addresses(text: str) -> Iterator[tuple[int, int]]:
    """(start, stop) of each address that is not reserved for examples, not a machine's, not code."""
    at = text.find("@")
    while at >= 0:
        before = text[max(0, at - _LONGEST_LOCAL) : at]
        if (local := _LOCAL.search(before)) and (domain := _domain(text, at + 1)):
            start = at - len(local[0])
            if _is_persons(local[0], domain) and not _IN_URL.search(text[max(0, start - 70) : at]):
                yield start, at + 1 + len(domain)
        at = text.find("@", at + 1)


def _domain(text: str, start: int) -> str:
    """The domain that begins there, or nothing."""
    match = _DOMAIN.match(text, start)
    if match is None:
        return ""
    domain = match[0]
    if _registered(domain):
        return domain
    shorter = _SENTENCE.sub("", domain)
    return shorter if shorter != domain and "." in shorter and _registered(shorter) else ""


def _is_persons(local: str, domain: str) -> bool:
    labels = domain.split(".")
    if local.casefold() in _ROLES or _RESERVED.fullmatch(domain):
        return False
    if local.split(".")[0] in _CODE or labels[0] in _CODE or labels[-1] in _ATTRIBUTES:
        return False
    if not (labels[-1].islower() or labels[-1].isupper() or labels[-1].istitle()):
        # The transposed matrix of `keys.mT`, which is no host in Malta.
        return False
    # One letter is a variable: such names exist in countries' domains, and a few of .com.
    return len(labels[-2]) > 1 or len(labels[-1]) == 2 or labels[-1].casefold() == "com"


@cache
def _suffixes() -> Any:
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList(accept_unknown=False, only_icann=True)


def _registered(domain: str) -> bool:
    return _suffixes().privatesuffix(domain.casefold()) is not None
