"""What an SQL query says, as far as it must be known to run it inside another one."""

import re

_PARTS = re.compile(
    r"(?P<space>\s+|--[^\n]*|/\*.*?\*/)|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|(?P<end>;)|\w+|.",
    re.DOTALL,
)
_READING = frozenset({"select", "with", "values"})


def bare(query: str) -> str:
    """The query without the semicolon that ends it and the comments behind that."""
    stop = len(query)
    for part in _PARTS.finditer(query):
        if part["end"]:
            # One in the middle stays: the database refuses a second statement in its own words.
            stop = min(stop, part.start())
        elif not part["space"]:
            stop = len(query)
    return query[:stop].strip()


def only_reads(query: str) -> bool:
    """Whether it begins as a query does, behind comments and parentheses."""
    words = (part[0] for part in _PARTS.finditer(query) if not part["space"] and part[0] != "(")
    return next(words, "").lower() in _READING
