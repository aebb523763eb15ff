import sysconfig
import time
from pathlib import Path

import pytest

from tasks.dataset.cleaning.personal import Detector
from tasks.dataset.cleaning_settings import PersonalDataSettings
from tasks.dataset.rows import Row

AMERICAN = Detector(PersonalDataSettings(phone_regions=["US"]))
# Put together here, so that no scanner takes this file for a leak.
GITHUB = "ghp_" + "a1B2" * 9
OPENAI = "sk-proj-" + "aB3dE6" * 8
PRIVATE = (
    "-----BEGIN RSA "
    + "PRIVATE KEY-----\n"
    + "MIIEpAIBAAKCAQEA/+Zz\n" * 4
    + "-----END RSA PRIVATE KEY-----"
)
TOKEN = ".".join(["eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiIxMjM0NTY3ODkwIn0", "dozjgNryP4J3jVmNHl0w5N"])


def row(prompt: str, answer: str = "Yes.") -> Row:
    messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Row(messages, "g", "rows.jsonl:1")


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to Jane.Doe+x@acme.co.uk.", "write to [EMAIL]."),
        ("<a@b-c.org>, (d@e.io)", "<[EMAIL]>, ([EMAIL])"),
        ("call +1 415-555-2671 or +49 30 901820!", "call [PHONE] or [PHONE]!"),
        ("call (415) 555-2671 or 415-555-2671", "call [PHONE] or [PHONE]"),
        ("pay by 4111 1111 1111 1111, 5500-0000-0000-0004", "pay by [CARD], [CARD]"),
        ("card 378282246310005.", "card [CARD]."),
        ("to DE89 3704 0044 0532 0130 00", "to [IBAN]"),
        ("AKIA" + "IOSFODNN7EXAMPLE", "[KEY]"),
        (f"token = '{GITHUB}'", "token = '[KEY]'"),
        (f"export KEY={OPENAI}\n", "export KEY=[KEY]\n"),
        (f"here:\n{PRIVATE}\nkeep it", "here:\n[KEY]\nkeep it"),
        (PRIVATE.replace("\n", "\\n"), "[KEY]"),
        (f"Bearer {TOKEN}", "Bearer [KEY]"),
        ('api_key: "9f8e7d6c5b4a39281706f5e4d3c2b1a0"', 'api_key: "[KEY]"'),
        ("postgres://bob:s3cr3tpw@db.acme.com/x", "postgres://bob:[KEY]@db.acme.com/x"),
        ("xoxb-" + "123456789012-abcdefGHIJKL", "[KEY]"),
    ],
)
def test_what_identifies_a_person_or_opens_a_door_is_found(text: str, redacted: str) -> None:
    assert AMERICAN.redacted(text) == redacted
    assert AMERICAN.redacted(redacted) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com, a@b.test, root@localhost, git@github.com:a/b.git",
        "y = x@w.transpose(0) and @functools.cache",
        "card 4111 1111 1111 1112",
        "4111111111111111.5 or 0.4111111111111111",
        "id 1234567890123456, hash 3782822463100050af, 2024-01-01 10:00:00",
        "+35236450.6 and 2147483647 and 192.168.100.200",
        "https://user:password@host and https://$USER:$TOKEN@host.com",
        "the header -----BEGIN PRIVATE KEY----- opens it",
        "password = 'correct-horse-battery-staple'",
        "token: 'tasks.dataset.cleaning.personal'",
        "a task-oriented-dialogue-with-many-hyphenated-words-in-2024",
        "DE89 3704 0044 0532 0130 01",
    ],
)
def test_look_alikes_are_left_alone(text: str) -> None:
    assert AMERICAN.findings(text) == []


def test_the_standard_librarys_code_holds_no_key_card_or_phone_number() -> None:
    """Half a million lines of code with figures, hashes and matrices; only its authors' addresses."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [*folder.glob("*.py"), *folder.glob("email/**/*.py"), *folder.glob("asyncio/*.py")]
    text_of = {file: file.read_text(encoding="utf-8", errors="replace") for file in files}
    found = [
        (file.name, finding.kind, text[finding.start : finding.stop])
        for file, text in text_of.items()
        for finding in AMERICAN.findings(text)
        if finding.kind != "email"
    ]

    assert len(files) > 150
    assert found == []


def test_each_policy_does_what_it_says() -> None:
    given = row("I am jane@acme.org, card 4111111111111111", "Noted, jane@acme.org.")
    policies = {
        policy: Detector(PersonalDataSettings(policy=policy)).applied(given)
        for policy in ("report", "redact", "drop")
    }

    assert policies["report"][0] is given
    assert policies["drop"][0] is None
    redacted = policies["redact"][0]
    assert redacted is not None
    assert [m["content"] for m in redacted.messages] == [
        "I am [EMAIL], card [CARD]",
        "Noted, [EMAIL].",
    ]
    for _, counts in policies.values():
        assert counts == {"email": 1, "card": 1}


def test_a_dropped_row_can_be_listed_without_its_secrets() -> None:
    masked = Detector(PersonalDataSettings(policy="drop")).masked(row(f"use {GITHUB}"))

    assert masked.messages[0]["content"] == "use [KEY]"


def test_only_the_kinds_asked_for_are_found() -> None:
    only_keys = Detector(PersonalDataSettings(kinds=["key"], policy="redact"))

    assert only_keys.redacted(f"jane@acme.org has {GITHUB}") == "jane@acme.org has [KEY]"


def test_a_row_without_findings_is_the_same_object() -> None:
    given = row("What is 2 + 2?", "4")

    assert Detector(PersonalDataSettings(policy="redact")).applied(given) == (given, {})
    assert Detector(PersonalDataSettings(policy="redact")).applied(given)[0] is given


@pytest.mark.parametrize(
    "text",
    ["a" * 200_000, "a." * 100_000, "1" * 100_000, "@" * 100_000, "eyJ" * 60_000, "A1 " * 60_000],
)
def test_no_text_makes_the_expressions_run_away(text: str) -> None:
    started = time.process_time()
    AMERICAN.findings(text)

    assert time.process_time() - started < 5


@pytest.mark.parametrize("region", ["us", "USA", ""])
def test_a_region_that_is_no_country_code_is_refused(region: str) -> None:
    with pytest.raises(ValueError, match="two capitals such as US"):
        PersonalDataSettings(phone_regions=[region])
