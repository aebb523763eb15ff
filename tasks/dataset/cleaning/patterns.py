"""How keys, mail addresses, card numbers and IBANs look, and which look-alikes are none.

The forms of keys are those that their issuers document. They are kept here, and not taken from a
scanner of repositories: those judge lines of configuration by entropy and variable names, which
misfires on prose and code, and lack the newer prefixes.
"""

import re

_FORMS = {
    (
        "AKIA",
        "ASIA",
        "ABIA",
        "ACCA",
    ): r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}(?![0-9A-Za-z])",  # Amazon
    ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"): r"gh[pousr]_[A-Za-z0-9]{36,255}",  # GitHub
    ("github_pat_",): r"github_pat_[A-Za-z0-9_]{60,255}",
    ("glpat-",): r"glpat-[A-Za-z0-9_-]{20,}",  # GitLab
    ("xox",): r"xox[abeprs]-[A-Za-z0-9-]{20,}",  # Slack
    ("xapp-",): r"xapp-\d-[A-Za-z0-9-]{20,}",
    ("hooks.slack.com/",): r"hooks\.slack\.com/services/T\w+/B\w+/\w{20,}",
    ("sk-",): r"sk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{32,}",  # OpenAI, Anthropic and those who follow
    ("AIza",): r"AIza[0-9A-Za-z_-]{35}",  # Google
    ("hf_",): r"hf_[A-Za-z0-9]{34,}",  # Hugging Face
    ("k_live_", "k_test_"): r"[rs]k_(?:live|test)_[A-Za-z0-9]{24,}",  # Stripe
    ("SG.",): r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}",  # SendGrid
    ("npm_",): r"npm_[A-Za-z0-9]{36}",
    ("pypi-AgE",): r"pypi-AgE[A-Za-z0-9_-]{50,}",
    ("AccountKey=",): r"AccountKey=[A-Za-z0-9+/]{86}==",  # Azure
    ("eyJ",): r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{10,}",  # RFC 7519
    # Letters must follow: a sentence about the header holds no key.
    ("-----BEGIN",): (
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?=[\s\\nr]*(?:Proc-Type|Version|Comment|[A-Za-z0-9+/=]{16}))"
        r"(?:[A-Za-z0-9+/=\s\\:,.()]|-(?!----))*"
        r"(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----)?"
    ),
}
KEY = re.compile(r"(?<![A-Za-z0-9_+-])(?:" + "|".join(_FORMS.values()) + ")")
KEY_PARTS = tuple(part for parts in _FORMS for part in parts)
"""A text without any of these holds nothing that `KEY` matches."""

QUOTED = re.compile(r"[\"']([A-Za-z0-9+/=_.-]{20,200})[\"']")
ASSIGNED = re.compile(
    r"(?i)(?:password|passwd|secret|token|api_?key|access_?key|auth)\w{0,20}[\"']?\]?\s{0,3}"
    r"(?::|=|=>)\s{0,3}\Z"
)
"""Before a quoted value: its name says that it is a secret."""
URL_PASSWORD = re.compile(r"(?<=://)[^\s/:@?#\"'<>]{1,64}:([^\s/:@\"'<>]{3,128})(?=@[A-Za-z0-9\[])")
_PLACEHOLDER = re.compile(
    r"(?i)[*x.]+|.*(?:pass(?:w(?:or)?d)?|pwd|secret|token|example|changeme|your|key)\b.*|[$%{].*"
)

EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+@/-])[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_])?"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9-]|\.[A-Za-z0-9]|[(\[])"
)
IN_URL = re.compile(r"://[^\s/@]{0,64}\Z")
"""Before what looks like a mail address: it is the name and password of a URL."""
# RFC 2606 and RFC 6761: names that belong to nobody. Documentation is full of them.
_RESERVED = re.compile(
    r"(?i)(?:.*[.@])?(?:example\.(?:com|net|org)|[^@]*\.?(?:example|test|invalid|localhost|local))"
)
_ROLES = frozenset({"git", "noreply", "no-reply", "donotreply", "do-not-reply"})

DIGITS = re.compile(r"\d(?:[ ()./-]{0,3}\d){6}")
"""At least seven digits close to each other: without them there is no phone and no card number."""
INTERNATIONAL = re.compile(r"[+＋][ (]{0,2}\d")
CARD = re.compile(r"(?<![\w.,+/=-])\d(?:[ -]?\d){11,18}(?![\w/=-]|[.,]\d)")
_CARD_BRANDS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}"  # Visa
    r"|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|[689]\d)\d{11}"  # Diners Club
    r"|(?:6011|65\d{2}|64[4-9]\d)\d{12,15}"  # Discover
    r"|35(?:2[89]|[3-8]\d)\d{12}"  # JCB
    r"|62\d{14,17}"  # UnionPay
)
IBAN = re.compile(
    r"(?<![\w/+=-])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![\w/+=-])"
)


def is_card(text: str) -> bool:
    """Whether digits have an issuer's prefix and length and Luhn's check digit (ISO/IEC 7812-1)."""
    digits = re.sub("[ -]", "", text)
    if not _CARD_BRANDS.fullmatch(digits) or len(set(digits)) < 2:
        return False
    doubled = sum(sum(divmod(int(digit) * 2, 10)) for digit in digits[-2::-2])
    return (doubled + sum(int(digit) for digit in digits[-1::-2])) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether the check digits are right (ISO 13616: the remainder by 97 is 1)."""
    account = text.replace(" ", "")
    if not 15 <= len(account) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in account[4:] + account[:4])) % 97 == 1


def is_decimal(text: str, start: int, stop: int) -> bool:
    """Whether `text[start:stop]` is a number with decimals, or what stands before their point."""
    return re.match(r"[+-]?\d+[.,]\d+(?![\d.,-])", text[start : stop + 20]) is not None


def is_persons_address(address: str) -> bool:
    """Whether a mail address may be somebody's: not reserved for examples, not a machine's."""
    local, _, domain = address.partition("@")
    return local.casefold() not in _ROLES and not _RESERVED.fullmatch(domain)


def is_secret(value: str) -> bool:
    """Whether an assigned value looks drawn by chance: digits among letters, no word, no path."""
    if _PLACEHOLDER.fullmatch(value) or value.count(".") > 2 or value.count("/") > 3:
        return False
    digits = sum(c.isdigit() for c in value)
    return digits >= 3 and len(set(value)) >= 12 and sum(c.isalpha() for c in value) >= 5


def is_password(value: str) -> bool:
    """Whether what stands before the @ of a URL is a password, and not a placeholder for one."""
    return not _PLACEHOLDER.fullmatch(value)
