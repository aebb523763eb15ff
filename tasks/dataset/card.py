"""What a machine reads about a prepared dataset: `card.json`, which people see too."""

from collections import Counter
from typing import Any

from tasks.dataset.build import Built
from tasks.dataset.cleaning.personal import PersonalData

LISTED_ROWS = 1000
_NAMES = ("name", "passed_over", "broken_links", "unreadable_files")
"""What a source's counts hold of names of files."""


def card(built: Built, *, digest: str, private: PersonalData) -> dict[str, Any]:
    """Counts of every step, as JSON. Holds no text of the rows and no folder.

    Names of slices are the rows' own, those of files people's: personal data in them is masked by
    `private`, whatever the policy for rows, for the card is published.
    """
    profiles = {side: profile.facts() for side, profile in built.profiles.items()}
    for facts in profiles.values():
        slices: Counter[str] = Counter()
        for name, rows in facts["slices"].items():
            slices[private.masked_name(name)] += rows
        facts["slices"] = dict(sorted(slices.items()))
    return {
        "digest": digest,
        "digests": built.digests,
        "rows": {side: facts["rows"] for side, facts in profiles.items()},
        "groups": {side: facts["groups"] for side, facts in profiles.items()},
        "holdout_rows": built.holdout_rows,
        "read": built.steps[0][1],
        "steps": [{"step": step, "rows": rows} for step, rows in built.steps],
        "unrecognisable_evaluation_rows": built.unrecognisable,
        "resembled_evaluation_rows": built.resembled[:LISTED_ROWS],
        "dropped": built.dropped,
        "warnings": private.masked_value(built.warnings),
        "changed": dict(sorted(built.changed.items())),
        "characters": {side: facts["characters"] for side, facts in profiles.items()},
        "profiles": profiles,
        "sources": [
            _masked_names({"name": source.name, "weight": source.weight, **source.counts}, private)
            for source in built.sources
        ],
    }


def _masked_names(source: dict[str, Any], private: PersonalData) -> dict[str, Any]:
    masked: dict[str, Any] = {}
    for part in _NAMES:
        if isinstance(found := source.get(part), str):
            masked[part] = private.masked_name(found)
        elif found is not None:
            masked[part] = [private.masked_name(name) for name in found]
    return source | masked
