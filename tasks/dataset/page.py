"""A Markdown summary as one HTML page: opens in any browser, asks nothing of the network."""

from html import escape

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { border: 1px solid #d0d7de; padding: .25em .75em; text-align: left; }
td + td { font-variant-numeric: tabular-nums; }
pre { background: #f6f8fa; padding: 1em; overflow-x: auto; white-space: pre-wrap; }
@media (prefers-color-scheme: dark) {
  body { background: #0d1117; color: #e6edf3; }
  pre { background: #161b22; }
  th, td { border-color: #30363d; }
}
"""


def page(title: str, markdown: str) -> str:
    """The page. HTML inside the Markdown is shown as text: rows of a dataset cannot run anything."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )
