"""What is done to each row by itself as it is read: one spelling, and the policy for personal data."""

from collections import Counter

from tasks.dataset.cleaning.normalise import EMPTIED, normalised
from tasks.dataset.cleaning.personal import PersonalData
from tasks.dataset.cleaning_settings import CleaningSettings
from tasks.dataset.removed import Removed
from tasks.dataset.rows import Row
from tasks.dataset.spool import as_line

NORMALISING = "normalising"
PERSONAL_DATA = "personal data"


class Cleaner:
    """Call it with a row; it returns what becomes of it, None for a row that is left out."""

    def __init__(self, settings: CleaningSettings, removed: Removed) -> None:
        self._normalise = settings.normalise
        found = settings.personal_data
        self._personal = PersonalData(found) if found is not None else None
        self._policy = found.policy if found is not None else ""
        self.changed: Counter[str] = Counter()
        """What was changed in rows that stay, or found in them: kind -> rows."""
        self.steps: dict[str, int] = {}
        """What was done to the rows, in order -> rows that were left out by it."""
        if self._normalise:
            self.steps[NORMALISING] = 0
        if self._personal is not None:
            self.steps[PERSONAL_DATA] = 0
        self._removed = removed

    def __call__(self, row: Row) -> Row | None:
        """The row as it goes on, or None."""
        changed, removed = self.changed, self._removed
        if self._normalise:
            clean, kinds = normalised(row)
            if clean is None:
                removed.add(EMPTIED, as_line(row))
                self.steps[NORMALISING] += 1
                return None
            changed.update(f"normalised: {kind}" for kind in kinds)
            row = clean
        if self._personal is not None:
            safe, found = self._personal.applied(row)
            if safe is None:
                removed.add(f"personal data: {', '.join(sorted(found))}", as_line(row))
                self.steps[PERSONAL_DATA] += 1
                return None
            word = "left in" if self._policy == "report" else "redacted"
            changed.update(f"{kind} found and {word}" for kind in found)
            row = safe
        return row
