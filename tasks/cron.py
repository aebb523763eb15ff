"""Which cron expressions and time zones a schedule may have: what Prefect takes, and runs when cron would.

Prefect's reading of an expression starts the runs, and cronsim's tells when one is missing; here is
refused, by name, what only one of them takes, or each takes for other times.
"""

import re
from datetime import UTC, datetime
from zoneinfo import available_timezones

_FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_LAST = (59, 23, 31, 12, 6)
"""The highest value of each field."""
_DAY, _WEEKDAY = 2, 4
_NAMES = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]


def check_cron(expression: str) -> None:
    """Raises: ValueError saying which part Prefect would not run as it is written, and what to write."""
    from cronsim import CronSim, CronSimError

    fields = expression.upper().split()
    # By itself, too: beside weekdays cron passes over a 30th of February, and Prefect finds no time.
    for one in (expression, " ".join([*fields[:_WEEKDAY], "*", *fields[_WEEKDAY + 1 :]])):
        try:
            CronSim(one, datetime(2024, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise ValueError(f"{expression!r} is no cron expression: {error}") from error
    if len(fields) != 5:
        raise ValueError(f"{expression!r} has not five fields: minute hour day month weekday")
    for number, field in enumerate(fields):
        if why := _field_mistake(number, field):
            raise ValueError(f"{expression!r}, {_FIELDS[number]}: {why}")
    days, weekdays = fields[_DAY], fields[_WEEKDAY]
    if "#" in weekdays and days != "*":
        # Prefect finds no time at all for many of these.
        raise ValueError(
            f"{expression!r}: Prefect cannot run on days of the month and on numbered weekdays (#). Leave "
            "the day of month *"
        )
    if "*" not in (days, weekdays) and "*" in (days[0], weekdays[0]):
        raise ValueError(
            f"{expression!r} limits days of the month and weekdays: cron runs it where both fit, Prefect "
            "where either does. Leave one of them *"
        )


def check_timezone(name: str) -> None:
    """Raises: ValueError for what Prefect takes for no time zone."""
    # Not by opening it: Prefect takes no file of the zone database that is a name of no zone.
    if name not in available_timezones():
        raise ValueError(
            f"{name!r} is no IANA time zone such as Europe/Berlin, or its data is not installed"
        )


def _field_mistake(number: int, field: str) -> str | None:
    items = field.split(",")
    if "#" in field and not all("#" in item for item in items):
        return f"{field} mixes weekdays with numbered ones (#), which Prefect cannot. Use one kind"
    return next((why for item in items if (why := _item_mistake(number, item))), None)


def _item_mistake(number: int, item: str) -> str | None:
    if number == _DAY and "W" in item:
        return f"Prefect has no last working day ({item}). Use L, the last day of the month"
    if number == _DAY and item.startswith("L") and item != "L":
        return f"{item} is not for Prefect. Write L"
    if number == _WEEKDAY and re.fullmatch(r"\dL", item):
        return (
            f"Prefect has no last weekday of a month ({item}). Number it from the month's beginning, as in "
            f"{item[0]}#4"
        )
    start, dash, end = item.partition("/")[0].partition("-")
    if dash:
        # From a value to itself is the whole field to Prefect: 5-5 hours are all 24.
        if _value(number, start) == _value(number, end):
            return f"Prefect takes {item} for every value. Write {start}"
    elif "/" in item and start != "*":
        if number == _WEEKDAY:
            return f"where {item} ends is read in two ways. Write it as a range, such as 1-5/2"
        if _value(number, start) == _LAST[number]:
            return f"Prefect takes {item} for every value. Write {start}"
    return None


def _value(number: int, text: str) -> int:
    for names, first in ((_NAMES, 1), (_WEEKDAYS, 0)):
        if text in names:
            return names.index(text) + first
    return int(text)
