"""Rows from Python code: the user shows a function or class, the assistant documents it."""

import hashlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tasks.dataset.reading.python_code import documented, name_as_words
from tasks.dataset.reading.python_files import python_files
from tasks.dataset.rows import Row
from tasks.dataset.source_settings import PythonSource
from tasks.errors import DataError

INSTRUCTION = "Write the docstring of this Python code."
"""Opens every user turn; the code follows after an empty line. Short: its tokens cost time in each row."""


@dataclass
class PythonCounts:
    """What the source held, filled while it is read."""

    files: int = 0
    unreadable_files: list[str] = field(default_factory=list)
    """Names of files that are not Python of this version."""
    rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Documented definitions that give no row, by reason."""


def python_digest(source: PythonSource, recipe_folder: Path) -> str:
    """sha256 (hex) over names and bytes of the source's files and the version of the parser."""
    # Another Python may refuse a file that this one parses.
    total = hashlib.sha256(f"python {sys.version_info[0]}.{sys.version_info[1]}\n".encode())
    for file in python_files(source, recipe_folder):
        content = hashlib.sha256(file.path.read_bytes()).hexdigest()
        total.update(f"{content} {file.name}\n".encode())
    return total.hexdigest()


def read_python(source: PythonSource, recipe_folder: Path, counts: PythonCounts) -> Iterator[Row]:
    """Yield one conversation for each documented function and class.

    A file that does not parse is skipped and counted: the standard library ships such files on
    purpose, and one broken file must not stop a nightly run over a large tree.

    Raises: DataError when there is no file, or nothing documented in any.
    """
    for file in python_files(source, recipe_folder):
        counts.files += 1
        # The group is the module. Definitions of one module are written alike (the methods of a
        # class, a function and its variants) and quote each other in their bodies; on both sides
        # of the split they would let a model score by remembering its neighbour.
        group = file.name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        try:
            with warnings.catch_warnings():
                # What a module's author escaped wrongly is none of our user's business.
                warnings.simplefilter("ignore")
                found = list(
                    documented(file.path.read_bytes(), source.max_code_characters, counts.skipped)
                )
        except (SyntaxError, ValueError, RecursionError):
            counts.unreadable_files.append(file.name)
            continue
        for item in found:
            counts.rows += 1
            yield Row(
                messages=(
                    {"role": "user", "content": f"{INSTRUCTION}\n\n{item.code}"},
                    {"role": "assistant", "content": item.answer},
                ),
                group=group,
                source=f"{file.name}:{item.line}",
                label=name_as_words(item.name),
            )
    if not counts.rows:
        raise DataError(
            f"No documented function or class in {source.package or source.path} "
            f"({counts.files} files, {len(counts.unreadable_files)} of them not Python of this "
            f"version, {counts.skipped.total()} docstrings unfit). Name code that has docstrings."
        )
