"""The Jinja environment of chat templates, as transformers documents it for `apply_chat_template`.

Sandboxed, with trimmed blocks, loop controls, a `tojson` that does not escape HTML, `raise_exception`
and `strftime_now`; `{% generation %}` marks are read and render as their content.
"""

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

TODAY = datetime(2024, 7, 26)
"""What a template that asks for the date is told (Llama 3's own fallback).

The day of the run would give other bytes for the same fingerprint; at inference the date differs
from the training date anyway.
"""


def environment() -> ImmutableSandboxedEnvironment:
    """A fresh environment. Its templates raise jinja2.TemplateError for what they refuse."""
    result = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
    )
    result.filters["tojson"] = _tojson
    result.globals["raise_exception"] = _raise_exception
    result.globals["strftime_now"] = TODAY.strftime
    return result


class _GenerationBlock(jinja2.ext.Extension):
    """Templates for training mark answers with `{% generation %}`; the mark renders as its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
