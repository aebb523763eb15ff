"""The recipe's section `dataset`: where rows come from and how they are split."""

from datetime import datetime

from pydantic import Field, field_validator, model_validator

from tasks.dataset.cleaning_settings import CleaningSettings
from tasks.dataset.source_settings import Source
from tasks.seen import SeenPolicy
from tasks.settings import Settings


class SplitSettings(Settings):
    """How rows are divided: by a hash of the row's group and the salt, never of `seed`."""

    test: float = Field(default=0.05, ge=0, lt=1)
    """Share of groups that are only ever evaluated. 0 needs a `dataset.holdout`."""
    salt: str | None = None
    """Changing it deals the rows anew. Default: the recipe's name."""
    max_test_rows: int | None = Field(default=None, ge=1)
    """Evaluate at most this many test rows, those with the smallest hashes; the others are left out of training too. New rows with smaller hashes take the places of old test rows: freeze a `dataset.holdout` where the same rows must be evaluated for good."""
    after: str | None = None
    """A date or time (ISO 8601): rows made then or later are tested, older ones trained. Not with `newest_days`."""
    newest_days: int | None = Field(default=None, ge=1)
    """Rows of the last so many days before the newest row are tested, older ones trained."""
    seen_by_champion: SeenPolicy = "refuse"
    """What happens when test rows of today were training rows of the champion: no comparison, or one without them. Those that are copies of rows left out of training today are left out of the comparison under either: data that grows brings such copies."""

    @field_validator("after")
    @classmethod
    def _a_moment(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                datetime.fromisoformat(value)
            except ValueError as error:
                raise ValueError("write a date or time such as 2026-03-01") from error
        return value

    @model_validator(mode="after")
    def _one_time(self) -> "SplitSettings":
        if self.after is not None and self.newest_days is not None:
            raise ValueError("split by `after` or by `newest_days`, not by both")
        return self

    @property
    def by_time(self) -> bool:
        """Whether a row's time decides its side, and not its group's hash."""
        return self.after is not None or self.newest_days is not None


class DriftSettings(Settings):
    """When today's rows are far from those that the champion was trained on."""

    warn_above: float = Field(default=0.2, ge=0, le=1)
    """A Jensen-Shannon distance (0 equal, 1 nothing in common) above this is warned about; lower warns sooner."""


class DatasetSettings(Settings):
    """Where rows come from and how they are split."""

    sources: list[Source] = Field(min_length=1)
    """One or more sources, read in this order."""
    split: SplitSettings = SplitSettings()
    holdout: Source | None = None
    """A frozen source that is only ever evaluated, beside the split's test rows; training rows like its own are left out. It stays whole, copies and all, but for what `personal_data: drop` takes."""

    @field_validator("holdout")
    @classmethod
    def _whole(cls, value: Source | None) -> Source | None:
        limits = [
            name for name in ("weight", "max_rows") if value and getattr(value, name) is not None
        ]
        if limits:
            raise ValueError(
                f"a holdout is evaluated whole, and has no {' and no '.join(limits)}; make its file smaller"
            )
        return value

    max_bad_rows: int | float = Field(default=0, ge=0)
    """How many bad rows (a whole number), or what share of the rows read (0.01: one in a hundred), go into `quarantine.jsonl` instead of stopping the run."""

    @field_validator("max_bad_rows")
    @classmethod
    def _a_count_or_a_share(cls, value: int | float) -> int | float:
        if isinstance(value, float) and value >= 1:
            raise ValueError("write a whole number of rows, or a share below 1 such as 0.01")
        return value

    cleaning: CleaningSettings = CleaningSettings()
    drift: DriftSettings = DriftSettings()

    @model_validator(mode="after")
    def _something_to_test(self) -> "DatasetSettings":
        if self.split.test == 0 and self.holdout is None and not self.split.by_time:
            raise ValueError("split.test is 0 and there is no holdout: no row would be evaluated")
        return self
