"""Names of adapters: which are allowed, and one made of any text."""

import re

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
"""A registered model, an experiment and a file are called by it, on every system."""
NAME_IN_WORDS = (
    "has lower case letters, digits, dots, dashes and underscores only, begins with a letter or a "
    "digit, and has at most 63 characters"
)


def slug(text: str) -> str:
    """A name made of `text`; `adapter` when nothing of it can stay."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")
    return plain[:63].rstrip("._-") or "adapter"
