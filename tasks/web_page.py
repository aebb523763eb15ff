"""A page of HTML that opens in any browser, is readable on a telephone, and asks nothing of the network."""

from html import escape

_STYLE = """
:root { --ground: #fff; --ink: #1f2328; --line: #d0d7de; --inset: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0d1117; --ink: #e6edf3; --line: #30363d; --inset: #161b22; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
  background: var(--ground); color: var(--ink); overflow-wrap: break-word; }
h2 { margin-top: 2em; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: 1em 0; max-width: 100%; display: block; overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: .25em .6em; text-align: left; vertical-align: top; }
td { font-variant-numeric: tabular-nums; }
code, pre { font: 13px/1.4 ui-monospace, monospace; }
code { overflow-wrap: anywhere; }
pre { background: var(--inset); padding: .75em; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; padding: 0 .75rem; }
  code, pre { font-size: 12px; }
}
"""


def document(title: str, body: str, style: str = "", head: str = "") -> str:
    """The page around `body`, which is HTML already; `title` is text; `style` are rules of its own.

    `head` are further elements of the head.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{head}<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )
