"""Answer a misspelt name with the nearest allowed one."""

import difflib
from collections.abc import Iterable

MOST_NAMES_LISTED = 12
CLOSE_ENOUGH = 0.7
"""Share of letters in common (difflib's ratio) from which a name is taken for a slip of the hand."""
TIE = 0.03
"""Names this close to the best one are offered beside it."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """A sentence that names the nearest allowed name, else (for a short list) all of them, else ``."""
    names = sorted(set(allowed))
    scores = {candidate: _likeness(name, candidate) for candidate in names}
    best = max(scores.values(), default=0.0)
    if best >= CLOSE_ENOUGH:
        near = [candidate for candidate in names if scores[candidate] >= best - TIE][:4]
        return "Did you mean " + " or ".join(f"`{candidate}`" for candidate in near) + "?"
    if 0 < len(names) <= MOST_NAMES_LISTED:
        return "Allowed here: " + ", ".join(f"`{candidate}`" for candidate in names) + "."
    return ""


def _likeness(name: str, candidate: str) -> float:
    return difflib.SequenceMatcher(None, _fold(name), _fold(candidate)).ratio()


def _fold(name: str) -> str:
    # `loraAlpha`, `LoRA-alpha` and `lora_alpha` are one name to a person.
    return name.lower().replace("-", "").replace("_", "")
