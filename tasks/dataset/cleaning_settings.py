"""The recipe's section `dataset.cleaning`: what is repaired, reported and left out before the split."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from tasks.settings import Settings

PersonalKind = Literal["key", "email", "card", "iban", "phone"]
"""What the detector looks for; the placeholder of a redaction is the kind in capitals, as in `[EMAIL]`."""


class PersonalDataSettings(Settings):
    """Keys and personal data in any message or tool of a row. Cards, which are published, never show them."""

    policy: Literal["report", "redact", "drop"] = "report"
    """`report` counts rows and changes none; `redact` writes `[EMAIL]` and the like over what was found; `drop` leaves the row out. The last two do the same to slices, quarantined rows and, by a hash, to groups."""
    kinds: list[PersonalKind] = Field(
        default=["key", "email", "card", "iban", "phone"], min_length=1
    )
    """Look for fewer kinds where one of them is the subject of the data."""
    phone_regions: list[str] = Field(default=[])
    """Countries (`US`, `DE`) whose numbers are also found without +49 and the like. Each one finds more numbers, and takes more plain figures for one."""

    @field_validator("phone_regions")
    @classmethod
    def _country_codes(cls, value: list[str]) -> list[str]:
        for region in value:
            if not re.fullmatch("[A-Z]{2}", region):
                raise ValueError(f"{region!r} is no country: write two capitals such as US or DE")
        return value


class NearDuplicateSettings(Settings):
    """Rows that are the same but for a few characters: of each such set one stays."""

    threshold: float = Field(default=0.85, ge=0.6, le=1.0)
    """Estimated share of common 5-character pieces (Jaccard) from which two rows are near duplicates. Lower removes more, and takes rows of one template for copies."""


class LengthSettings(Settings):
    """Rows whose prompt or answer is too short or too long are left out."""

    min_prompt_characters: int = Field(default=0, ge=0)
    """Characters of all turns before the last answer, system prompt included."""
    max_prompt_characters: int | None = Field(default=None, ge=1)
    """A rough guard against pasted files; what fits the model is `tokenization.max_length`."""
    min_answer_characters: int = Field(default=0, ge=0)
    """Leaves out answers such as "ok". Short answers are right for classification."""
    max_answer_characters: int | None = Field(default=None, ge=1)
    """Longer answers cost memory in training and time in evaluation."""

    @model_validator(mode="after")
    def _room_between(self) -> "LengthSettings":
        for part in ("prompt", "answer"):
            low = getattr(self, f"min_{part}_characters")
            high = getattr(self, f"max_{part}_characters")
            if high is not None and low > high:
                raise ValueError(
                    f"min_{part}_characters is {low} and max_{part}_characters is {high}: "
                    "no row would be left"
                )
        return self


class LanguageSettings(Settings):
    """Rows in other languages are left out."""

    keep: list[str] = Field(min_length=1)
    """Languages to keep, as ISO 639-1 codes such as `en`. Text too short or too mixed to tell stays."""
    min_confidence: float = Field(default=0.8, ge=0.5, lt=1.0)
    """How sure the detector must be of another language before a row goes. Lower removes more, and errs more on short rows and code."""

    @field_validator("keep")
    @classmethod
    def _language_codes(cls, value: list[str]) -> list[str]:
        for code in value:
            if not re.fullmatch("[a-z]{2,3}", code):
                raise ValueError(f"{code!r} is no language: write an ISO 639-1 code such as en")
        return value


class ContaminationSettings(Settings):
    """Training rows that repeat an evaluation row are left out."""

    ngram_words: int = Field(default=8, ge=3, le=50)
    """Length of the runs of words that are compared. Longer runs find only copies without a change."""
    ngram_share: float = Field(default=0.7, gt=0, le=1)
    """Share of an evaluation row's runs (or of its prompt's) that a training row must hold. Lower also finds quotations."""
    similarity: float = Field(default=0.5, ge=0.4, le=1)
    """Estimated Jaccard similarity from which a training row is a reworded copy; finds changed words and moved clauses. Lower takes rows on the same subject for copies."""


class CleaningSettings(Settings):
    """What happens to rows before they are divided, in this order; every step can be switched off."""

    normalise: bool = True
    """One spelling for each character (NFC), `\\n` line ends, no invisible control characters. Without it, copies that differ in these only go unnoticed."""
    personal_data: PersonalDataSettings | None = PersonalDataSettings()
    """Keys, card numbers, mail addresses; null does not look, and saves its time."""
    near_duplicates: NearDuplicateSettings | None = NearDuplicateSettings()
    """null keeps near duplicates, and needs none of the memory (280 bytes a row) that finding them takes."""
    length: LengthSettings | None = None
    """null keeps rows of every length."""
    language: LanguageSettings | None = None
    """null keeps rows of every language."""
    contamination: ContaminationSettings | None = ContaminationSettings()
    """null trains on rows that repeat evaluation rows: the evaluation then measures memory."""
