"""Text and numbers as HTML: everything that comes from a model, a row or a recipe passes through here."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import urlsplit

PREVIEW_CHARACTERS = 700
"""Of a long text before the reader asks for all of it."""
WHOLE_CHARACTERS = 100_000
"""Beyond it even "all" ends: one runaway answer must not become the page."""
MISSING = "–"


def text(value: object) -> str:
    """`value` as text that can never be markup, in an element or in an attribute."""
    # A lone surrogate has no UTF-8: the page could not be written.
    return escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def passage(value: str, shown: str | None = None) -> str:
    """A text of any length with its line ends; a long one is cut, the whole behind "show all".

    `shown` is the same text as HTML, with marks; it stands in for one that is short enough.
    """
    if not value.strip():
        return '<div class="passage empty">(empty)</div>'
    if is_short(value):
        return f'<div class="passage" dir="auto">{text(value) if shown is None else shown}</div>'
    whole, rest = value[:WHOLE_CHARACTERS], len(value) - WHOLE_CHARACTERS
    told = f"show all {len(value):,} characters"
    end = ""
    if rest > 0:
        told = f"show {WHOLE_CHARACTERS:,} of {len(value):,} characters"
        end = f'<p class="hint">{rest:,} more characters are in predictions.parquet.</p>'
    return (
        f'<div class="long"><div class="passage preview" dir="auto">{text(value[:PREVIEW_CHARACTERS])} …</div>'
        f'<details><summary>{told}</summary><div class="passage" dir="auto">{text(whole)}</div>{end}'
        "</details></div>"
    )


def is_short(value: str) -> bool:
    """Whether `passage` shows the text whole at once."""
    # A cut that spares a few words is none.
    return len(value) <= PREVIEW_CHARACTERS * 1.25


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int | None = None
) -> str:
    """A table in a frame that scrolls; cells are HTML already, those from `numbers_from` on are numbers."""

    def cells(tag: str, row: Sequence[str]) -> str:
        marked = []
        for column, content in enumerate(row):
            is_number = numbers_from is not None and column >= numbers_from
            if column == 0:
                scope = "col" if tag == "th" else "row"
                marked.append(f'<th scope="{scope}">{content}</th>')
            else:
                marked.append(f"<{tag}{' class=n' if is_number else ''}>{content}</{tag}>")
        return f"<tr>{''.join(marked)}</tr>"

    body = "\n".join(cells("td", row) for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table><thead>{cells("th", head)}</thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values, a line each; both are HTML already."""
    lines = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in pairs)
    return f'<dl class="facts">{lines}</dl>'


def link(url: str | None, words: str) -> str:
    """A link, if `url` leads to a page; else the words alone."""
    if url is None or urlsplit(url).scheme not in ("http", "https"):
        return text(words)
    return f'<a href="{text(url)}" rel="noreferrer">{text(words)}</a>'


def section(anchor: str, title: str, *parts: str) -> str:
    """A part of the report under its heading."""
    return f'<section id="{anchor}">\n<h2>{text(title)}</h2>\n{"".join(parts)}</section>\n'


def paragraph(content: str, kind: str = "") -> str:
    """A paragraph of HTML."""
    return f'<p class="{kind}">{content}</p>' if kind else f"<p>{content}</p>"


def number(value: object) -> str:
    """Three decimals; large numbers shorter; a dash for nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING
    if not math.isfinite(value):
        return "not finite"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def signed(value: object) -> str:
    """As `number`, with its sign, which is a real minus; what rounds to nothing has none."""
    shown = number(value)
    if not shown.strip("-0."):
        return shown.removeprefix("-")
    if shown in (MISSING, "not finite"):
        return shown
    return f"−{shown[1:]}" if shown.startswith("-") else f"+{shown}"


def count(many: int, one: str, more: str | None = None) -> str:
    """`1 rule`, `2 rules`."""
    return f"{many:,} {one if many == 1 else more or one + 's'}"
