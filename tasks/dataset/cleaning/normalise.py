"""One spelling for what looks the same, and nothing that cannot be seen.

Case, width, quotation marks, runs of spaces and indentation stay as they are: they carry meaning in
code and in style. So the canonical form is NFC, which changes how a character is stored, and not
NFKC, which turns x² into x2.
"""

import re
import unicodedata
from collections import Counter
from typing import Any

from tasks.dataset.cleaning.rewriting import rewritten
from tasks.dataset.rows import Row

LINE_ENDS = "line ends"
TERMINAL = "terminal colours"
CONTROL = "control characters"
INVISIBLE = "invisible characters"
COMPOSED = "composed characters"
EMPTIED = "nothing left after normalising"

# Beside CRLF and CR: the line ends that Unicode adds, which some readers of lines cut at.
_LINE_ENDS = re.compile("\r\n?|[\x85\u2028\u2029]")
# The whole of a terminal's sequence: without its first character the rest is debris such as [31m.
_TERMINAL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Byte order marks, zero-width spaces, word joiners, the two direction overrides (text that reads
# otherwise than it is, CVE-2021-42574) and tag characters (hidden instructions), but for a flag's.
# Joiners (U+200C, U+200D) and direction marks stay: Persian, Hindi, Hebrew and emoji need them.
_INVISIBLE = re.compile(
    "(\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f)"
    "|[\ufeff\u200b\u2060\u202d\u202e\U000e0000-\U000e007f]+"
)
_PLAIN = re.compile(r"[\n\t\x20-\x7e]*\Z")


def normalised(row: Row) -> tuple[Row | None, Counter[str]]:
    """The row in its normal form, and each kind of change once if the row needed it.

    The row is None when a turn holds nothing else than what is taken out.
    """
    changes: set[str] = set()
    result = rewritten(row, lambda text: _normal(text, changes))
    if result is not row and _lost_a_turn(row, result):
        return None, Counter([EMPTIED])
    return result, Counter(changes)


def normal(text: str) -> str:
    """The text in its normal form; doing it again changes nothing."""
    return _normal(text, set())


def _normal(text: str, changes: set[str]) -> str:
    if _PLAIN.match(text):
        return text
    # Colours before control characters, which begin them; NFC last: what is taken out may have
    # stood between a letter and its accent.
    for kind, pattern, substitute in (
        (LINE_ENDS, _LINE_ENDS, "\n"),
        (TERMINAL, _TERMINAL, ""),
        (CONTROL, _CONTROL, ""),
        (INVISIBLE, _INVISIBLE, r"\1"),
    ):
        new = pattern.sub(substitute, text)
        if new != text:
            changes.add(kind)
            text = new
    if not unicodedata.is_normalized("NFC", text):
        changes.add(COMPOSED)
        text = unicodedata.normalize("NFC", text)
    return text


def _lost_a_turn(before: Row, after: Row) -> bool:
    if after.text is not None and not after.text.strip():
        return True
    pairs = zip(before.messages + before.rejected, after.messages + after.rejected, strict=True)
    return any(_blank(new) and not _blank(old) for old, new in pairs)


def _blank(message: dict[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, str) and not content.strip() and not message.get("tool_calls")
