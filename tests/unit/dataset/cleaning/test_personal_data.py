"""What the policy for personal data does with a row."""

from typing import Any

import pytest

from tasks.dataset.cleaning.personal import PersonalData
from tasks.dataset.cleaning_settings import PersonalDataSettings
from tasks.dataset.rows import Row
from tasks.dataset.spool import as_line

KEY = "ghp_" + "a1B2" * 9


def row(prompt: str, answer: str = "Yes.", **more: Any) -> Row:
    messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Row(messages, more.pop("group", "g"), "rows.jsonl:1", **more)


def by_policy(given: Row) -> dict[str, Any]:
    return {
        policy: PersonalData(PersonalDataSettings(policy=policy)).applied(given)
        for policy in ("report", "redact", "drop")
    }


def test_each_policy_does_what_it_says() -> None:
    given = row("I am jane@acme.org, card 4111111111111111", "Noted, jane@acme.org.")

    done = by_policy(given)

    assert done["report"][0] is given
    assert done["drop"][0] is None
    assert [m["content"] for m in done["redact"][0].messages] == [
        "I am [EMAIL], card [CARD]",
        "Noted, [EMAIL].",
    ]
    for _, counts in done.values():
        assert counts == {"email": 1, "card": 1}


def test_what_a_row_is_counted_and_kept_together_by_is_redacted_too() -> None:
    tool = {"type": "function", "function": {"name": "mail", "description": "as jane@acme.org"}}
    beside = {"group": "jane@acme.org", "slice": "of jane@acme.org", "label": "joe@acme.org"}
    given = row("Hi", tools=(tool,), **beside)

    redacted, counts = by_policy(given)["redact"]

    assert b"@" not in as_line(redacted)
    assert redacted.slice == "of [EMAIL]"
    assert redacted.tools[0]["function"] == {"name": "mail", "description": "as [EMAIL]"}
    assert counts == {"email": 1}


def test_a_redacted_group_holds_the_same_rows_as_before() -> None:
    masked = PersonalData(PersonalDataSettings(policy="redact")).masked
    groups = [
        masked(row(text, group=group)).group
        for text, group in [("a", "jane@acme.org"), ("b", "jane@acme.org"), ("c", "joe@acme.org")]
    ]

    assert groups[0] == groups[1] != groups[2]
    assert masked(row("a", group="shop")).group == "shop"


def test_an_address_as_group_does_not_cost_the_row_but_is_not_kept_either() -> None:
    dropped, counts = by_policy(row("Hi", group="jane@acme.org"))["drop"]

    assert dropped is not None
    assert b"@" not in as_line(dropped)
    assert counts == {"email": 1}


def test_a_key_in_a_tool_is_found() -> None:
    tool = {"function": {"name": "f", "parameters": {"enum": [KEY]}}}

    assert by_policy(row("Hi", tools=(tool,)))["drop"] == (None, {"key": 1})


def test_a_row_without_findings_is_the_same_object() -> None:
    given = row("What is 2 + 2?", "4")
    data = PersonalData(PersonalDataSettings(policy="redact"))

    assert data.applied(given) == (given, {})
    assert data.applied(given)[0] is given


@pytest.mark.parametrize("region", ["us", "USA", ""])
def test_a_region_that_is_no_country_code_is_refused(region: str) -> None:
    with pytest.raises(ValueError, match="two capitals such as US"):
        PersonalDataSettings(phone_regions=[region])
