"""Text of models and data inside Markdown: shown as it is, never taken as markup."""

import re
from collections.abc import Sequence

_MARKUP = re.compile(r"([\\`*_\[\]|~$<>&:@])")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "|": "&#124;"}


def cell(text: str, characters: int) -> str:
    """`text` for a table cell: markup escaped, line ends shown as ↵, cut after `characters`."""
    text = _cut(text, characters).replace("\r\n", "\n")
    text = re.sub(r"\s*\n\s*", " ↵ ", text.strip())
    if not text:
        return "*(empty)*"
    return _MARKUP.sub(lambda match: _ENTITIES.get(match[1], "\\" + match[1]), text)


def code_block(text: str, characters: int | None = None) -> str:
    """`text` between fences that it cannot close, cut after `characters`."""
    text = text.strip("\n")
    if characters is not None:
        text = _cut(text, characters)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells must be escaped already."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[:characters].rstrip() + " …"
