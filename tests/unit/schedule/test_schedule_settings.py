"""The recipe's section `schedule` refuses what would never fire, or fire by surprise."""

import random
from datetime import UTC, datetime
from zoneinfo import available_timezones

import pytest
from cronsim import CronSim
from pydantic import ValidationError

from tasks.schedule import ScheduleSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "needs `cron`, `after_new_rows` or `after_days`"),
        ({"timezone": "Europe/Berlin"}, "needs `cron`"),
        ({"cron": "0 2 * *"}, "five fields|no cron expression"),
        ({"cron": "0 25 * * *"}, "no cron expression"),
        ({"cron": "0 0 2 * * *"}, "five fields|no cron expression"),
        ({"cron": "0 2 * * *", "timezone": "Berlin"}, "no IANA time zone"),
        ({"after_new_rows": 0}, "greater than or equal to 1"),
        ({"after_days": 0}, "greater than 0"),
    ],
)
def test_a_schedule_that_says_nothing_or_something_impossible_is_refused(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        ScheduleSettings.model_validate(values)


def test_the_clock_and_the_data_may_both_start_a_run() -> None:
    both = ScheduleSettings(cron="0 2 * * *", after_new_rows=500)
    assert both.watches
    assert not ScheduleSettings(cron="0 2 * * *").watches
    assert ScheduleSettings(after_days=7).cron is None


@pytest.mark.parametrize(
    ("cron", "message"),
    [
        ("0 2 * * 5L", "day of week: Prefect has no last weekday .*5#4"),
        ("0 2 * * 0L", "no last weekday"),
        ("0 2 * * 7L", "no last weekday"),
        ("0 0 LW * *", "day of month: Prefect has no last working day"),
        ("0 0 L/2 * *", "Write L"),
        ("0 2 * * 1#1,3", "mixes weekdays"),
        ("0 2 1 * MON#2", "day of month \\*"),
        # Each of these would run every hour, every day, or on days that nobody named.
        ("0 5-5 * * *", "hour: Prefect takes 5-5 for every value. Write 5"),
        ("0 23/1 * * *", "Write 23"),
        ("0 2 * JAN-1 *", "Write JAN"),
        ("0 2 * * MON/2", "such as 1-5/2"),
        ("0 2 */2 * MON", "where both fit"),
        ("0 2 30 2 MON", "Bad day-of-month"),
    ],
)
def test_what_prefect_does_not_run_as_cron_would_is_refused_with_what_to_write(
    cron: str, message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        ScheduleSettings(cron=cron)


PIECES = (
    "0 59 60 * */15 */0 5/10 1-5 5-1 3-3 0-59/7 1,2,3 1,,2 L R H ? 1-* 01 -1 7/ 59/1 */5,3",
    "0 2 24 * */6 1-5 22-2 5-5 23/1 L",
    "0 1 13 29 31 32 * */2 L l LW lw L,15 LW,15 15W L/2 LW/2 L,LW ? 1-31 31-1 4-4 *,L 30,31",
    "0 2 12 13 * JAN jan Dec JAN-MAR NOV-FEB */3 JAN/2 FOO 1-JAN 6-6 12/1 4,2",
    (
        "0 6 7 8 * MON sun Mon-Fri FRI-MON MON#2 1#1 5#5 5#6 5#0 7#1 5L 0L 7L L5 L MONL 1#1,3 1#1,2#2 "
        "3,5L MON,5 */2 */7 1-5/2 6-7 0-7 5-7/2 7-7 SUN-MON MON-FRI#1 1# *#1 MON/2 7/1 ? W 7,0 0-6,1#1"
    ),
)
"""Of each field pieces: usual ones, those of other crons, and wrong ones."""
OTHERS = ["@daily", "0 2 * * * *", "* * * *", "0 2 * * * * *", "", "h h * * *"]


def expressions() -> list[str]:
    """Each piece by itself, and together in the fields that are read together, and then some."""
    fields = [pieces.split() for pieces in PIECES]
    usual = ["0", "2", "*", "*", "*"]
    found = {
        " ".join([*usual[:number], piece, *usual[number + 1 :]])
        for number, pieces in enumerate(fields)
        for piece in pieces
    }
    found.update(f"0 2 {day} * {weekday}" for day in fields[2] for weekday in fields[4])
    some = random.Random(0)
    found.update(" ".join(some.choice(pieces) for pieces in fields) for _ in range(300))
    return sorted(found | set(OTHERS))


def test_what_a_recipe_accepts_prefect_takes_and_runs_when_cron_would() -> None:
    from prefect._vendor.croniter import croniter
    from prefect.client.schemas.schedules import CronSchedule

    start = datetime(2024, 1, 1)
    accepted = []
    for cron in expressions():
        try:
            ScheduleSettings(cron=cron)
        except ValidationError:
            continue
        accepted.append(cron)
        CronSchedule(cron=cron, timezone="Europe/Berlin")
        # How Prefect's server finds the times (prefect.server.schemas.schedules).
        theirs, ours = croniter(cron, start), CronSim(cron, start.replace(tzinfo=UTC))
        times = [theirs.get_next(datetime) for _ in range(8)]
        assert times == [next(ours).replace(tzinfo=None) for _ in range(8)], cron
    assert len(accepted) > 150
    assert {"0 2 L * *", "0 2 * * MON#2", "0 2 1 * *", "0 2 13 * 5-7/2"} <= set(accepted)


def test_every_time_zone_that_a_recipe_accepts_is_one_of_prefects() -> None:
    from prefect.client.schemas.schedules import CronSchedule

    kinds = ("posix/Europe/Berlin", "right/UTC", "posixrules", "localtime", "+02:00", "EST5EDT")
    accepted = 0
    for zone in (*sorted(available_timezones())[::12], *kinds):
        try:
            ScheduleSettings(cron="0 2 * * *", timezone=zone)
        except ValidationError:
            continue
        accepted += 1
        CronSchedule(cron="0 2 * * *", timezone=zone)
    assert accepted > 30
    with pytest.raises(ValidationError, match="no IANA time zone"):
        ScheduleSettings(cron="0 2 * * *", timezone="posix/Europe/Berlin")
