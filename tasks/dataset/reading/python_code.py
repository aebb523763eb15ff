"""Take one Python file apart: every documented function and class, its code and what it says it does."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import decode_source

MIN_ANSWER_CHARACTERS = 20
MAX_ANSWER_CHARACTERS = 400
MIN_ANSWER_WORDS = 3

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

SIGNATURE = re.compile(r"[\w.]+\s*\(.*\)\s*(->.*|=.*)?[.:]?")
WORD = re.compile(r"[^\W\d_]{2,}")
NAME_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")


@dataclass(frozen=True)
class Documented:
    """A function or class with the first paragraph of its docstring."""

    line: int
    name: str
    code: str
    """Signature and body, dedented, without any docstring, cut at a line's end."""
    answer: str
    """The docstring's first paragraph on one line."""


def documented(raw: bytes, budget: int, skipped: Counter[str]) -> Iterator[Documented]:
    """Yield what a file documents, in the order of its lines; `skipped` counts the rest by reason.

    `budget` is the length of the code in characters.

    Raises: SyntaxError or ValueError when the file is not Python of this version.
    """
    text = decode_source(raw)
    # Not splitlines(): a form feed ends no line for Python's parser.
    lines = text.split("\n")
    for node in _definitions(ast.parse(text)):
        docstring = ast.get_docstring(node)
        if docstring is None or _is_noise(node):
            continue
        answer = first_paragraph(docstring)
        if problem := unfit(answer):
            skipped[problem] += 1
            continue
        yield Documented(node.lineno, node.name, cut(_code(node, lines), budget), answer)


def first_paragraph(docstring: str) -> str:
    """Everything before the first blank line, with its white space collapsed."""
    return " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())


def unfit(answer: str) -> str | None:
    """Why a paragraph is no answer to learn from, or None."""
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return "documentation too long"
    if SIGNATURE.fullmatch(answer):
        return "documentation is only a signature"
    if not answer.isprintable():
        # Escapes in the literal: half a surrogate pair, a null byte.
        return "documentation holds control characters"
    if answer.startswith(">>>"):
        return "documentation is only an example"
    if len(answer) < MIN_ANSWER_CHARACTERS or len(WORD.findall(answer)) < MIN_ANSWER_WORDS:
        return "documentation too short"
    if answer.endswith(":"):
        # It announces the paragraph that is not there.
        return "documentation ends in mid-sentence"
    return None


def cut(code: str, budget: int) -> str:
    """The code's first lines within `budget` characters; a line with `...` marks what is missing.

    The first line stays whatever its length.
    """
    if len(code) <= budget:
        return code
    lines = code.split("\n")
    size = len(lines[0])
    kept = 1
    while kept < len(lines) and size + 1 + len(lines[kept]) <= budget:
        size += 1 + len(lines[kept])
        kept += 1
    if kept == len(lines):
        return code
    indent = lines[kept][: len(lines[kept]) - len(lines[kept].lstrip())]
    return "\n".join([*lines[:kept], f"{indent}..."])


def name_as_words(name: str) -> str:
    """`read_csv_file` -> `read csv file`, `HTTPServer2` -> `http server 2`."""
    return " ".join(NAME_PART.findall(name)).lower() or name


def _definitions(tree: ast.AST) -> Iterator[Definition]:
    """Every function and class, nested ones too, in source order."""
    # Definitions stand in lists of statements only; expressions need no walk, which would take most of the time.
    for block in ("body", "handlers", "orelse", "finalbody", "cases"):
        for node in getattr(tree, block, ()):
            if isinstance(node, Definition):
                yield node
            yield from _definitions(node)


def _is_noise(node: Definition) -> bool:
    """Protocol methods, overloads and property setters repeat what is documented elsewhere."""
    if node.name.startswith("__") and node.name.endswith("__"):
        return True
    for decorator in node.decorator_list:
        name = decorator.attr if isinstance(decorator, ast.Attribute) else None
        name = decorator.id if isinstance(decorator, ast.Name) else name
        if name in {"overload", "setter", "deleter"}:
            return True
    return False


def _code(node: Definition, lines: list[str]) -> str:
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    last = node.end_lineno or node.lineno
    kept = dict(zip(range(first, last + 1), lines[first - 1 : last], strict=True))
    # The docstrings of nested definitions go too: each of them is another row's answer.
    for inner in (node, *_definitions(node)):
        if ast.get_docstring(inner, clean=False) is not None:
            # A body of nothing else still needs a statement.
            _replace(inner.body[0], kept, "pass" if len(inner.body) == 1 else "")
    indent = lines[first - 1][: len(lines[first - 1]) - len(lines[first - 1].lstrip())]
    return "\n".join(line.rstrip().removeprefix(indent) for line in kept.values() if line.strip())


def _replace(statement: ast.stmt, kept: dict[int, str], text: str) -> None:
    """Put `text` in the place of a statement, which may share its lines with others."""
    first, last = statement.lineno, statement.end_lineno or statement.lineno
    # `ast` counts columns in UTF-8 bytes.
    before = kept[first].encode()[: statement.col_offset].decode()
    after = kept[last].encode()[statement.end_col_offset :].decode()
    kept[first] = before + text + (after if text else after.lstrip(" \t;"))
    for number in range(first + 1, last + 1):
        kept[number] = ""
