"""Rows as they are trained, in colours: `tokens.html`, one page that needs nothing beside it."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tasks.personal_data.detector import Detector
from tasks.tokenization.chat import Chat
from tasks.tokenization.segments import Segment, segments
from tasks.tokenization.spans import UNTRAINED
from tasks.tokenization.tally import Sample
from tasks.web_page import document

SHOWN_CHARACTERS = 6000
"""Of a stretch of text: a row of a hundred thousand tokens must not become the page."""

_STYLE = """
:root { --trained: #c8f0d0; --under: #1a7f37; --special: #fff1c2; --edge: #bf8700; }
@media (prefers-color-scheme: dark) {
  :root { --trained: #12391f; --under: #3fb950; --special: #3b2e00; --edge: #d29922; }
}
.tokens { background: var(--inset); padding: .75em; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.7 ui-monospace, monospace; }
.trained { background: var(--trained); border-bottom: 2px solid var(--under); }
.special { border: 1px solid var(--edge); border-radius: 4px; padding: 0 .2em; font-size: .9em; }
.special:not(.trained) { background: var(--special); }
.cut { font-style: italic; opacity: .7; }
h3 { margin-bottom: .25em; overflow-wrap: anywhere; }
"""


def page(
    chat: Chat,
    facts: Mapping[str, Any],
    *,
    samples: Mapping[str, Sequence[Sample]],
    longest: Mapping[str, Sequence[Sample]],
) -> str:
    """The page: `facts` is the card; `samples` and `longest` are rows of each side.

    Trained tokens stand on a coloured ground and are underlined, special tokens have a frame. What
    looks like personal data is masked: the page is published. It runs no script.
    """
    total, trained = (sum(facts[name].values()) for name in ("tokens", "trained_tokens"))
    parts = [
        "<h1>Tokens</h1>",
        f"<p>{total:,} tokens, {trained:,} of them ({trained / total:.1%}) carry loss. "
        f"Encoded by {escape(str(facts['encoder']))}.</p>",
        '<p><span class="trained">Text that is trained</span>, text that is only read, '
        '<span class="special">special token</span>, '
        '<span class="special trained">special token that is trained</span>. '
        "What looks like personal data is masked on this page, and nowhere else.</p>",
    ]
    detector = Detector()
    for head, rows in (("Some", samples), ("The longest", longest)):
        for side, some in rows.items():
            if some:
                parts.append(f"<h2>{head} {escape(side)} rows</h2>")
                parts += [_row(chat, sample, detector) for sample in some]
    return document("Tokens", "\n".join(parts) + "\n", _STYLE)


def _row(chat: Chat, sample: Sample, detector: Detector) -> str:
    trained = sum(label != UNTRAINED for label in sample.labels)
    shown = "".join(
        _segment(segment, detector) for segment in segments(chat, sample.input_ids, sample.labels)
    )
    return (
        f"<h3>Row <code>{escape(sample.id)}</code></h3>\n"
        f"<p>{len(sample.input_ids):,} tokens, {trained:,} trained</p>\n"
        f'<div class="tokens">{shown}</div>'
    )


def _segment(segment: Segment, detector: Detector) -> str:
    names = ["special"] * segment.special + ["trained"] * segment.trained
    if segment.special:
        return f'<span class="{" ".join(names)}">{escape(segment.text)}</span>'
    text = _shortened(detector.redacted(segment.text))
    return f'<span class="{names[0]}">{text}</span>' if names else text


def _shortened(text: str) -> str:
    """As HTML: the beginning and the end of a long text."""
    cut = len(text) - SHOWN_CHARACTERS
    if cut <= 0:
        return escape(text)
    half = SHOWN_CHARACTERS // 2
    return (
        f'{escape(text[:half])}<span class="cut"> [{cut:,} characters are not shown] </span>'
        f"{escape(text[-half:])}"
    )
