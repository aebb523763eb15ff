"""Leave out rows by their lengths and by their language."""

import re
from functools import cached_property
from typing import TYPE_CHECKING

from tasks.dataset.cleaning.shingles import last_said, said
from tasks.dataset.cleaning_settings import LanguageSettings, LengthSettings
from tasks.dataset.rows import Row
from tasks.errors import DataError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNDECIDED = "undecided"

_FENCED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_NO_WORDS = re.compile(r"https?://\S+|[^\W\d_]*[\d_][\w]*|[^\w\s'’]+")
_JUDGED_CHARACTERS = 400
_MIN_LETTERS = 20


class LengthFilter:
    """Says which rows are too short or too long, and why."""

    def __init__(self, settings: LengthSettings) -> None:
        self._settings = settings

    def reason(self, row: Row) -> str | None:
        """Why the row is left out, in words for counting; None keeps it."""
        limits = self._settings
        lengths = {
            "prompt": sum(len(said(message)) for message in row.messages[:-1]),
            "answer": len(last_said(row)),
        }
        for part, length in lengths.items():
            low = getattr(limits, f"min_{part}_characters")
            high = getattr(limits, f"max_{part}_characters")
            if length < low:
                return f"{part} shorter than {low} characters"
            if high is not None and length > high:
                return f"{part} longer than {high} characters"
        return None


class Languages:
    """Tells the language of text: langid's model as py3langid ships it (139 languages, 5 MB).

    Ten times faster and twenty times smaller than detectors with n-gram tables of every language,
    which tell more of two-word texts; here such texts are undecided.
    """

    def of(self, text: str, min_confidence: float = 0.8) -> str:
        """ISO 639-1 code, or `UNDECIDED` for text too short, too mixed, or all code."""
        words = " ".join(_NO_WORDS.sub(" ", _FENCED.sub(" ", text[:20_000])).split())
        # Chinese, Japanese and Korean say in one sign what takes others a few letters.
        weight = sum(3 if char > "\u2e80" else 1 for char in words[:_JUDGED_CHARACTERS])
        if weight < _MIN_LETTERS:
            return UNDECIDED
        code, confidence = self._identifier.classify(words[:_JUDGED_CHARACTERS])
        return str(code) if confidence >= min_confidence else UNDECIDED

    def of_row(self, row: Row, min_confidence: float = 0.8) -> str:
        """The language of the answer, or of the prompt where the answer does not tell.

        The answer is what is trained; a translation from French into English is English.
        """
        answer = self.of(last_said(row), min_confidence)
        if answer != UNDECIDED:
            return answer
        before = " ".join(said(m) for m in row.messages[:-1] if m["role"] != "system")
        return self.of(before, min_confidence)

    @cached_property
    def known(self) -> frozenset[str]:
        """All codes that can be told."""
        return frozenset(map(str, self._identifier.labels))

    @cached_property
    def _identifier(self) -> "LanguageIdentifier":
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class LanguageFilter:
    """Says which rows are in a language that is not wanted."""

    def __init__(self, settings: LanguageSettings, languages: Languages | None = None) -> None:
        """Raises: DataError for a code that the detector does not know."""
        self._settings = settings
        self._languages = languages or Languages()
        unknown = sorted(set(settings.keep) - self._languages.known)
        if unknown:
            raise DataError(
                f"dataset.cleaning.language.keep has {', '.join(unknown)}, which cannot be told. "
                f"Known: {', '.join(sorted(self._languages.known))}."
            )

    def reason(self, row: Row) -> str | None:
        """Why the row is left out, in words for counting; None keeps it."""
        language = self._languages.of_row(row, self._settings.min_confidence)
        if language == UNDECIDED or language in self._settings.keep:
            return None
        return f"in another language ({language})"
