"""What a machine reads about a prepared dataset: `card.json`, which people see too."""

from collections import Counter
from typing import Any

from tasks.dataset.build import Built
from tasks.dataset.cleaning.personal import PersonalData

LISTED_ROWS = 1000


def card(built: Built, *, digest: str, private: PersonalData) -> dict[str, Any]:
    """Counts of every step, as JSON. Holds no text of the rows and no folder.

    Names of slices are the rows' own: personal data in them is masked by `private`, whatever the
    policy for rows, for the card is published.
    """
    profiles = {side: profile.facts() for side, profile in built.profiles.items()}
    for facts in profiles.values():
        slices: Counter[str] = Counter()
        for name, rows in facts["slices"].items():
            slices[private.masked_value(name)] += rows
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
            {"name": source.name, "weight": source.weight, **source.counts}
            for source in built.sources
        ],
    }
