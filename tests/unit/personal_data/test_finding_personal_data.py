import sysconfig
import time
from pathlib import Path

import pytest

from tasks.personal_data.detector import Detector

PLAIN = Detector()
AMERICAN = Detector(phone_regions=["US"])
HEX = "4f3c2b1a9e8d7c6b" * 2
AMAZON = "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYzzzzzzzKEY"
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


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to Jane.Doe+x@acme.co.uk.", "write to [EMAIL]."),
        ("<a@b-c.org>, (d@e.io)", "<[EMAIL]>, ([EMAIL])"),
        ("call +1 415-555-2671 or +49 30 901820!", "call [PHONE] or [PHONE]!"),
        ("call + 49 30 901820", "call [PHONE]"),
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
        # A file of settings: no quotation marks, and nothing around the sign.
        (f"API_KEY={HEX}\nDEBUG=1", "API_KEY=[KEY]\nDEBUG=1"),
        (f"export AUTH_TOKEN={HEX}", "export AUTH_TOKEN=[KEY]"),
        (f"aws_secret_access_key = {AMAZON}", "aws_secret_access_key = [KEY]"),
        (f"Authorization: Bearer {HEX}", "Authorization: Bearer [KEY]"),
        ("authorization: Basic " + "Ym9iOnMzY3JldHB3", "authorization: Basic [KEY]"),
        ("password = 'hunter2hunter2A9'", "password = '[KEY]'"),
        ("info@müller.de, müller@firma.de", "[EMAIL], [EMAIL]"),
        ("j.o'brien@acme.ie or o'hara@acme.ie", "[EMAIL] or [EMAIL]"),
        ("send(f'anna@firma.de')", "send(f'[EMAIL]')"),
        ("请联系zhang@firma.cn。", "请联系[EMAIL]。"),
        ("Ask anna@firma.de.Then wait.", "Ask [EMAIL].Then wait."),
        ("ANNA@FIRMA.DE, Anna@Firma.De, a@x.com", "[EMAIL], [EMAIL], [EMAIL]"),
        ("iban: de89370400440532013000", "iban: [IBAN]"),
        ("CH93-0076-2011-6238-5295-7", "[IBAN]"),
        ("AT61 1904 3002 3457 3201 bitte", "[IBAN] bitte"),
        ("4111.1111.1111.1111 or 4111\u00a01111\u00a01111\u00a01111", "[CARD] or [CARD]"),
        ("card=4111111111111111&x", "card=[CARD]&x"),
        ("call 0049 30 901820 or 0041 44 668 18 00", "call [PHONE] or [PHONE]"),
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
        "W@x.shape, W@x.data, self.w@x.data and q@keys.mT",
        "model.layer@v1.2.weights and hidden@self.weight.it",
        "nobody@host.internal",
        "1+1 234 567 8901",
        "x + 98172488 or 0.143 x + 14285714.286",
        "codes 0011 0044 2079 4609 and 00442079460958",
        "key = layer1_block2_conv3_bn4",
        "token = tokens_of_row_1234(5)",
        "auth: see chapter 12.3.4 of the manual",
        "the bearer of this letter_which_is_no_token_1234",
        "Basic instructions-for-everybody-here",
        "secret=${SECRET_FROM_VAULT_0123456789}",
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


@pytest.mark.parametrize(
    "text",
    ["a" * 200_000, "a." * 100_000, "1" * 100_000, "@" * 100_000, "eyJ" * 60_000, "A1 " * 60_000],
)
def test_no_text_makes_the_expressions_run_away(text: str) -> None:
    started = time.process_time()
    AMERICAN.findings(text)

    assert time.process_time() - started < 5


def test_only_the_kinds_asked_for_are_found() -> None:
    assert Detector(["key"]).redacted(f"jane@acme.org has {GITHUB}") == "jane@acme.org has [KEY]"


def test_numbers_without_their_countrys_code_need_a_region() -> None:
    assert PLAIN.findings("call 415-555-2671") == []
    assert AMERICAN.redacted("call 415-555-2671") == "call [PHONE]"
