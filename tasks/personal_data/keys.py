"""Find keys, tokens and passwords: by their issuers' forms, and by the names they are assigned to.

The forms are those that their issuers document. They are kept here, and not taken from a scanner of
repositories: those judge lines of configuration by entropy and variable names, which misfires on
prose and code, and lack the newer prefixes.
"""

import base64
import re
from collections.abc import Iterator

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
_FORM = re.compile(r"(?<![A-Za-z0-9_+-])(?:" + "|".join(_FORMS.values()) + ")")
_FIXED = re.compile("|".join(re.escape(part) for parts in _FORMS for part in parts))
"""A text without any of these holds nothing that `_FORM` matches."""

# What an assignment gives, quoted or up to the end of the word: `.env` files have no quotes.
_VALUE = re.compile(
    r"[:=>]\s{0,3}(?:(?P<mark>[\"'`])(?P<quoted>[A-Za-z0-9+/=_.~!#$%^*-]{8,200})(?P=mark)"
    r"|(?P<bare>[A-Za-z0-9+/=_.~-]{16,200})(?![\w(\[{.<]))"
)
_NAME = re.compile(
    r"(?i)(?P<strong>password|passwd|passphrase|pwd)?"
    r"(?(strong)|(?:secret|token|api_?key|access_?key|account_?key|auth))"
    r"\w{0,20}[\"']?\]?\s{0,3}=?\Z"
)
"""Before an assigned value: its name says that it is a secret; `strong`: a password, which is short."""
_AMAZON = re.compile(r"(?i)aws.{0,20}secret")
_AUTHORIZATION = re.compile(
    r"(?i:\b(?P<scheme>bearer|basic))\s{1,3}(?P<value>[A-Za-z0-9+/=_.~-]{16,400})"
)
_URL_PASSWORD = re.compile(
    r"(?<=://)[^\s/:@?#\"'<>]{1,64}:([^\s/:@\"'<>]{3,128})(?=@[A-Za-z0-9\[])"
)
_PLACEHOLDER = re.compile(
    r"(?i)[*x.]+|.*(?:pass(?:w(?:or)?d)?|pwd|secret|token|example|changeme|your|key)\b.*|[$%{].*"
)
_WORD = re.compile(r"[a-z]{4,}")


def keys(text: str) -> Iterator[tuple[int, int]]:
    """(start, stop) of each; some may be found twice."""
    if _FIXED.search(text):
        for match in _FORM.finditer(text):
            yield match.span()
    for match in _VALUE.finditer(text):
        before = text[max(0, match.start() - 60) : match.start()]
        if name := _NAME.search(before):
            part = "quoted" if match["quoted"] else "bare"
            if _is_assigned(match[part], part == "quoted", bool(name["strong"]), before):
                yield match.span(part)
    # The words are looked for first, which costs a twentieth of the expression.
    if "earer" in text or "asic" in text:
        for match in _AUTHORIZATION.finditer(text):
            if _authorizes(match["scheme"].casefold(), match["value"]):
                yield match.span("value")
    if "://" in text and "@" in text:
        for match in _URL_PASSWORD.finditer(text):
            if not _PLACEHOLDER.fullmatch(match[1]):
                yield match.span(1)


def _is_assigned(value: str, quoted: bool, password: bool, before: str) -> bool:
    if _is_drawn(value):
        return len(value) >= (20 if quoted else 16) and (quoted or not _is_words(value))
    if quoted and password and len(value) >= 10:
        # Made up by a person: shorter, and with words in it.
        digits = sum(c.isdigit() for c in value)
        return digits >= 2 and len(set(value)) >= 8 and not _PLACEHOLDER.fullmatch(value)
    # Amazon's are of 40 signs, of which few may be digits.
    return len(value) == 40 and bool(_AMAZON.search(before)) and not value.islower()


def _is_drawn(value: str) -> bool:
    """Whether a value looks drawn by chance: digits among letters, no word, no path."""
    if _PLACEHOLDER.fullmatch(value) or value.count(".") > 2 or value.count("/") > 3:
        return False
    digits = sum(c.isdigit() for c in value)
    return digits >= 3 and len(set(value)) >= 12 and sum(c.isalpha() for c in value) >= 5


def _is_words(value: str) -> bool:
    """Whether a value without quotes is a name: half of it are runs of small letters."""
    return 2 * sum(len(word) for word in _WORD.findall(value)) >= len(value)


def _authorizes(scheme: str, value: str) -> bool:
    if scheme == "bearer":
        return _is_drawn(value)
    try:
        # RFC 7617: name:password.
        plain = base64.b64decode(value, validate=True).decode()
    except ValueError:
        return False
    return plain.isprintable() and ":" in plain
