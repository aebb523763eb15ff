"""A run is called by what ran and why, as a person would say it."""

from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import CreatedBy, FlowRun

from flows.recipe_heading import heading_of
from flows.run_names import cause_of, run_name
from flows.stack.crashes import AGAIN
from tasks.schedule import cadence


def a_run(kind: str | None, *tags: str) -> FlowRun:
    creator = None if kind is None else CreatedBy(type=kind, display_value="small")
    return FlowRun(flow_id=uuid4(), created_by=creator, tags=list(tags))


def test_a_name_grows_with_what_is_known() -> None:
    assert run_name("small", version=None, rows=None, cause="manual") == "small · manual"
    assert run_name("small", version=None, rows=1, cause="event") == "small · 1 row · event"
    assert (
        run_name("quickstart", version="7", rows=6120, cause="nightly")
        == "quickstart v7 · 6,120 rows · nightly"
    )


@pytest.mark.parametrize(
    ("cron", "word"),
    [
        ("0 2 * * *", "nightly"),
        ("30 23 * * *", "nightly"),
        ("0 2 * * 1-5", "nightly"),
        ("0 12 * * *", "daily"),
        ("5 * * * *", "hourly"),
        ("0 */6 * * *", "every 6 hours"),
        ("0 3 * * 0", "weekly"),
        ("0 3 1 * *", "monthly"),
        ("*/15 * * * *", "scheduled"),
        ("0 8,20 * * *", "every 12 hours"),
        ("0 8,10 * * *", "scheduled"),
        ("0 0 29 2 *", "scheduled"),
        ("nonsense", "scheduled"),
    ],
)
def test_a_schedule_is_called_as_a_person_would(cron: str, word: str) -> None:
    assert cadence(cron) == word


def test_the_cause_is_the_schedule_the_event_or_a_person() -> None:
    assert cause_of(None, "0 2 * * *", "") == "manual"
    assert cause_of(a_run(None), "0 2 * * *", "I changed the rank") == "manual"
    assert cause_of(a_run("SCHEDULE"), "0 2 * * *", "") == "nightly"
    # A schedule that somebody made by hand, of a recipe that has none.
    assert cause_of(a_run("SCHEDULE"), None, "") == "scheduled"
    assert cause_of(a_run("SCHEDULE", AGAIN), "0 2 * * *", "") == "after a crash"
    event = a_run("AUTOMATION")
    assert cause_of(event, None, "data: 512 of 6,120 rows are new (asked for: 500)") == "new data"
    assert cause_of(event, None, "base: the base's lock moved to commit 0123") == "new base"
    assert cause_of(event, None, "thumbs\n down: 7 %") == "thumbs down: 7 %"
    assert cause_of(event, None, "x" * 200) == "event"
    assert cause_of(event, None, "") == "event"


def test_a_recipe_that_cannot_be_read_still_gives_a_name(tmp_path: Path) -> None:
    path = tmp_path / "support.yaml"
    assert heading_of(str(path)) == ("support", None)
    path.write_text("name: helpdesk\nschedule: {cron: '0 2 * * *'}\n")
    assert heading_of(str(path)) == ("helpdesk", "0 2 * * *")
    assert heading_of(str(path), ["seed=7", "name=other"]) == ("other", "0 2 * * *")
    path.write_text("name: [")
    assert heading_of(str(path)) == ("support", None)
    # A schedule bears its adapter's name.
    assert heading_of(str(path), otherwise="helpdesk") == ("helpdesk", None)
