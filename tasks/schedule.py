"""The recipe's section `schedule`: when the recipe is run again."""

from zoneinfo import ZoneInfo

from pydantic import field_validator

from tasks.settings import Settings


class ScheduleSettings(Settings):
    """When the recipe is run again; not part of any fingerprint."""

    cron: str
    """Five fields, for example `0 2 * * *`."""
    timezone: str = "UTC"
    """An IANA time zone, for example `Europe/Berlin`."""

    @field_validator("cron")
    @classmethod
    def _check_cron(cls, value: str) -> str:
        from datetime import UTC, datetime

        from cronsim import CronSim, CronSimError

        try:
            CronSim(value, datetime(2024, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise ValueError(f"{value!r} is no cron expression: {error}") from error
        if len(value.split()) != 5:
            raise ValueError(f"{value!r} has not five fields: minute hour day month weekday")
        return value

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{value!r} is no IANA time zone such as Europe/Berlin, or its data is not installed"
            ) from error
        return value
