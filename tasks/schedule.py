"""The recipe's section `schedule`: when the recipe is run again."""

from datetime import UTC, datetime
from itertools import pairwise

from pydantic import Field, field_validator, model_validator

from tasks.cron import check_cron, check_timezone
from tasks.settings import Settings


class ScheduleSettings(Settings):
    """When the recipe is run again: by the clock, by its data, or by both; part of no fingerprint."""

    cron: str | None = None
    """Five fields, for example `0 2 * * *`. Default: the data alone decides."""
    timezone: str = "UTC"
    """An IANA time zone, for example `Europe/Berlin`. A fixed hour that daylight saving skips or repeats runs once."""
    after_new_rows: int | None = Field(default=None, ge=1)
    """Run when the sources hold so many rows more than at the last training that `watch-data` saw. Smaller: more trainings for fewer rows each."""
    after_days: float | None = Field(default=None, gt=0)
    """Run when the data has changed at all, and the last training is so many days old."""

    @field_validator("cron")
    @classmethod
    def _check_cron(cls, value: str | None) -> str | None:
        if value is not None:
            check_cron(value)
        return value

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str) -> str:
        check_timezone(value)
        return value

    @model_validator(mode="after")
    def _anything(self) -> "ScheduleSettings":
        if self.cron is None and not self.watches:
            raise ValueError("a schedule needs `cron`, `after_new_rows` or `after_days`")
        return self

    @property
    def watches(self) -> bool:
        """Whether new data starts a run."""
        return self.after_new_rows is not None or self.after_days is not None


def cadence(cron: str) -> str:
    """How a person calls it: `hourly`, `every 6 hours`, `nightly`, `daily`, `weekly`, `monthly`; else `scheduled`.

    A daily one is nightly when it is due between nine in the evening and six in the morning.
    """
    from cronsim import CronSim, CronSimError

    try:
        clock = CronSim(cron, datetime(2024, 1, 1, tzinfo=UTC))
        times = [next(clock) for _ in range(8)]
    except (CronSimError, StopIteration):
        return "scheduled"
    hours = sorted((later - one).total_seconds() / 3600 for one, later in pairwise(times))
    # The shortest gap: a schedule of working days is no less a daily one.
    shortest = hours[0]
    if shortest == 1:
        return "hourly"
    if shortest.is_integer() and 1 < shortest < 24 and hours[-1] == shortest:
        return f"every {shortest:.0f} hours"
    if shortest == 24:
        return "nightly" if times[0].hour >= 21 or times[0].hour < 6 else "daily"
    if shortest == 7 * 24:
        return "weekly"
    return "monthly" if 28 * 24 <= shortest <= 31 * 24 else "scheduled"
