"""A Markdown summary as one HTML page."""

from tasks.web_page import document

# Bars belong behind their numbers: rather scroll than wrap.
_STYLE = """
pre:has(> code.language-histogram) { white-space: pre; overflow-wrap: normal; }
"""


def page(title: str, markdown: str) -> str:
    """The page. HTML inside the Markdown is shown as text: rows of a dataset cannot run anything."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    return document(title, body, _STYLE)
