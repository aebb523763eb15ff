"""What the policy for personal data does with a row."""

from typing import Any

import pytest

from tasks.dataset.cleaning.personal import PersonalData
from tasks.dataset.cleaning_settings import PersonalDataSettings
from tasks.dataset.rows import Row
from tasks.dataset.spool import as_line

KEY = "ghp_" + "a1B2" * 9
TOKEN = ".".join(["eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiIxMjM0NTY3ODkwIn0", "dozjgNryP4J3jVmNHl0w5N"])


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


@pytest.mark.parametrize(
    ("before", "key", "behind"),
    [
        ('Set api_key="', "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc", '" in the file. Then rest.'),
        ("Authorization: Bearer ", TOKEN, " and then the rest."),
        ("Authorization: Bearer ", TOKEN + "~more/1", " and then the rest."),
        ("password = '", "ghp_" + "a1B2" * 9, "'; mail jane@acme.org"),
    ],
)
def test_the_text_behind_a_key_that_is_found_twice_stays(
    before: str, key: str, behind: str
) -> None:
    """By its form and by the name it is assigned to."""
    redacted, counts = by_policy(row("Hi", f"{before}{key}{behind}"))["redact"]

    left = behind.replace("jane@acme.org", "[EMAIL]")
    assert redacted.messages[1]["content"] == f"{before}[KEY]{left}"
    assert counts["key"] == 1


@pytest.mark.parametrize("column", ["prompt", "text", "instruction", "customer"])
@pytest.mark.parametrize("secret", ["jane@acme.org", "4111111111111111", "+49 30 901820"])
def test_a_column_of_any_name_gives_away_no_person_as_group(column: str, secret: str) -> None:
    given = row("Hi", group=f"{column}-{secret}")

    for policy in ("redact", "drop"):
        kept, counts = by_policy(given)[policy]
        assert secret.encode() not in as_line(kept)
        assert counts.total() == 1
    assert secret.encode() not in as_line(PersonalData(PersonalDataSettings()).masked(given))


def test_default_groups_are_hashes_and_stay() -> None:
    for name in ("prompt", "text", "instruction"):
        given = row("Mail jane@acme.org", group=f"{name}-{'0123456789abcdef'}")
        assert by_policy(given)["redact"][0].group == given.group


@pytest.mark.parametrize(
    ("name", "masked"),
    [
        ("jane@acme.org.jsonl:12", "[EMAIL].jsonl:12"),
        ("chats/jane@acme.org.csv.gz", "chats/[EMAIL].csv.gz"),
        ("jane@acme.org/a.jsonl", "[EMAIL]/a.jsonl"),
        ("of.2026-10.jsonl:3", "of.2026-10.jsonl:3"),
    ],
)
def test_a_files_name_shows_no_address_to_readers(name: str, masked: str) -> None:
    data = PersonalData(PersonalDataSettings())

    assert data.masked_name(name) == masked
