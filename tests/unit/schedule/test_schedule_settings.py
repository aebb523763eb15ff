"""The recipe's section `schedule` refuses what would never fire, or fire by surprise."""

import pytest
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
