"""The recipe's section `schedule`: when the recipe is run again."""

from tasks.settings import Settings


class ScheduleSettings(Settings):
    """When the recipe is run again; not part of any fingerprint."""

    cron: str
    """Five fields, for example `0 2 * * *`."""
    timezone: str = "UTC"
    """An IANA time zone, for example `Europe/Berlin`."""
