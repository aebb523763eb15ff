"""`loraline check --rows N` tells trained text, special tokens and the rest apart."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.commands.check import _preview
from tasks.tokenization.preview import PreviewRow, preview


class Check:
    """Stands for the recipe's check, of which only the rows are asked for."""

    def __init__(self, tokens: Path, base: Path) -> None:
        self._tokens = tokens
        self._base = base

    def preview(self, rows: int) -> list[PreviewRow]:
        return preview(self._tokens, self._base, rows=rows)


@pytest.fixture
def check(make_base: Any, tokenize: Any) -> Check:
    typed = "Is <|end|> a [bold]word[/bold]?"
    rows = [
        {
            "id": f"{k:03}",
            "group": "g",
            "messages": [
                {"role": "user", "content": typed if k == 0 else "What?"},
                {"role": "assistant", "content": "Yes."},
            ],
            "source": f"s:{k}",
            "label": None,
        }
        for k in range(150)
    ]
    base = make_base()
    return Check(tokenize(base, rows).path, base.path)


def test_without_colours_brackets_tell_them_apart(check: Any) -> None:
    written = StringIO()
    _preview(check, Console(file=written, width=120), 2)

    text = written.getvalue()
    assert "trained text is in ⟦ ⟧, special tokens are in « »" in text
    # What a user typed is no token, and no markup of the console either.
    assert "«<|user|>»Is < |end|> a [bold]word[/bold]?«<|end|><|assistant|>»" in text
    assert text.count("⟦Yes.«<|end|>»⟧«<|endoftext|>»") == 2


def test_on_a_terminal_colours_do(check: Any) -> None:
    written = StringIO()
    console = Console(file=written, width=120, force_terminal=True, color_system="standard")
    _preview(check, console, 1)

    text = written.getvalue()
    assert "\x1b[32mYes.\x1b[0m\x1b[7;32m<|end|>" in text
    assert "⟦" not in text
    assert "«" not in text
