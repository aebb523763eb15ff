"""Bad rows that were put aside are no place for what good rows must not hold."""

import json
from pathlib import Path

from tasks.dataset.cleaning.personal import PersonalData


def mask_quarantine(path: Path, private: PersonalData) -> None:
    """Write placeholders over what `private` finds in `quarantine.jsonl`, where there is one.

    A key of 100 characters, cut off where the quarantine shortens a long row, may be missed.
    """
    if not path.exists():
        return
    masked = path.with_suffix(".masked")
    with path.open(encoding="utf-8") as lines, masked.open("w", encoding="utf-8") as stream:
        for line in lines:
            stream.write(json.dumps(private.masked_value(json.loads(line))) + "\n")
    masked.replace(path)
