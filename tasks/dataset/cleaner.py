"""What is done to each row by itself as it is read: one spelling, and the policy for personal data."""

from collections import Counter

from tasks.dataset.cleaning.normalise import EMPTIED, normalised
from tasks.dataset.cleaning.personal import Detector
from tasks.dataset.cleaning_settings import CleaningSettings
from tasks.dataset.removed import Removed
from tasks.dataset.rows import Row
from tasks.dataset.spool import as_line


class Cleaner:
    """Call it with a row; it returns what becomes of it, None for a row that is left out."""

    def __init__(self, settings: CleaningSettings, removed: Removed) -> None:
        self._normalise = settings.normalise
        found = settings.personal_data
        self._detector = Detector(found) if found is not None else None
        self._policy = found.policy if found is not None else ""
        self.changed: Counter[str] = Counter()
        """What was changed in rows that stay, or found in them: kind -> rows."""
        self._removed = removed

    def __call__(self, row: Row) -> Row | None:
        """The row as it goes on, or None."""
        changed, removed = self.changed, self._removed
        if self._normalise:
            clean, kinds = normalised(row)
            if clean is None:
                removed.add(EMPTIED, as_line(row))
                return None
            changed.update(f"normalised: {kind}" for kind in kinds)
            row = clean
        if self._detector is not None:
            safe, found = self._detector.applied(row)
            if safe is None:
                removed.add(f"personal data: {', '.join(sorted(found))}", as_line(row))
                return None
            word = "redacted" if self._policy == "redact" else "left in"
            changed.update(f"{kind} found and {word}" for kind in found)
            row = safe
        return row
