import ast
import time
from collections import Counter
from pathlib import Path

import pytest

from tasks.dataset.reading.python_code import (
    Documented,
    cut,
    documented,
    first_paragraph,
    name_as_words,
)
from tasks.dataset.reading.python_files import python_files
from tasks.dataset.reading.python_source import (
    INSTRUCTION,
    PythonCounts,
    python_digest,
    read_python,
)
from tasks.dataset.source_settings import PythonSource
from tasks.errors import DataError


def items(source: str, budget: int = 600) -> list[Documented]:
    return list(documented(source.encode(), budget, Counter()))


def test_the_code_is_shown_without_its_docstring_and_with_its_comments() -> None:
    source = '''
class Queue:
    """A line of people who wait."""

    @property
    def length(self) -> int:
        """Return how many people wait.

        A second paragraph.
        """
        # Nobody counts himself.
        return len(self._people) - 1
'''
    whole, length = items(source)

    assert length.answer == "Return how many people wait."
    assert length.code == (
        "@property\n"
        "def length(self) -> int:\n"
        "    # Nobody counts himself.\n"
        "    return len(self._people) - 1"
    )
    assert whole.name == "Queue"
    assert whole.code.startswith("class Queue:\n    @property\n    def length")


def test_no_docstring_of_a_nested_definition_is_shown() -> None:
    source = '''
def outer():
    """Return the inner function of this one."""
    def inner():
        """Return the secret number of this module."""
        return 7
    class Local:
        "Hold what nobody else can see here."
    return inner
'''
    found = items(source)

    assert [item.name for item in found] == ["outer", "inner", "Local"]
    for item in found:
        for other in found:
            assert other.answer not in item.code
        ast.parse(item.code)


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ('def f(): "Return nothing that anybody needs."', "def f(): pass"),
        ('def f(): "Return what nobody needs."; return 1', "def f(): return 1"),
        (
            'def f(é="ü"):\n    """Return what nobody needs."""  # noqa\n    return é',
            'def f(é="ü"):\n    # noqa\n    return é',
        ),
        (
            'def f():\n    "Return what " \\\n    "nobody needs."\n    return 1',
            "def f():\n    return 1",
        ),
        ('if True:\n\tdef f():\n\t\t"""Return what nobody needs."""\n\t\tpass', "def f():\n\tpass"),
        (
            'def f():\n    """Return what nobody needs."""\n\f\n    return 1',
            "def f():\n    return 1",
        ),
        (
            "try:\n    import a\nexcept ImportError:\n    def f():\n        "
            '"""Return what nobody needs."""\n        return 1',
            "def f():\n    return 1",
        ),
    ],
)
def test_a_docstring_is_taken_out_wherever_it_stands(source: str, code: str) -> None:
    assert [item.code for item in items(source)] == [code]


def test_a_file_in_another_encoding_is_read_by_its_declaration() -> None:
    source = '# coding: latin-1\ndef f():\n    """Grüße an alle Leser."""\n'.encode("latin-1")

    assert [item.answer for item in documented(source, 600, Counter())] == ["Grüße an alle Leser."]


@pytest.mark.parametrize(
    ("docstring", "reason"),
    [
        ("Return it.", "documentation too short"),
        ("--------------------------------", "documentation too short"),
        (
            "open(file, mode='r') -> a file object that can be read",
            "documentation is only a signature",
        ),
        (">>> add(1, 2) and nothing else here", "documentation is only an example"),
        ("The options of this function are these:", "documentation ends in mid-sentence"),
        ("word " * 100, "documentation too long"),
        ("Return half of the pair \\ud800 of it.", "documentation holds control characters"),
    ],
)
def test_documentation_that_teaches_nothing_is_skipped_and_counted(
    docstring: str, reason: str
) -> None:
    skipped: Counter[str] = Counter()
    source = f'def f():\n    """{docstring}"""\n'.encode()

    assert list(documented(source, 600, skipped)) == []
    assert skipped == {reason: 1}


def test_protocol_methods_overloads_and_setters_give_no_rows() -> None:
    source = '''
import typing
from typing import overload
class Box:
    """A box that holds one thing."""
    def __len__(self):
        """Return how many things it holds."""
    @property
    def thing(self):
        """The thing that lies in the box."""
    @thing.setter
    def thing(self, value):
        """Put a thing into the box, again."""
    @overload
    def put(self, a: int) -> None:
        """Put a number into this box."""
    @typing.overload
    def put(self, a: str) -> None:
        """Put a text into this box here."""
'''
    assert [item.answer for item in items(source)] == [
        "A box that holds one thing.",
        "The thing that lies in the box.",
    ]


def test_only_the_first_paragraph_is_the_answer_on_one_line() -> None:
    assert first_paragraph("\n  One\n    line.  \n \t\n Another.\n") == "One line."


def test_code_is_cut_at_the_end_of_a_line_and_says_so() -> None:
    code = "def f():\n    a = 1\n    b = 2\n    return a + b"

    assert cut(code, 25) == "def f():\n    a = 1\n    ..."
    assert cut(code, len(code)) == code
    assert cut("def a_very_long_name(): ...", 5) == "def a_very_long_name(): ..."


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("read_csv_file", "read csv file"),
        ("_private", "private"),
        ("JSONDecodeError", "json decode error"),
        ("HTTPServer2", "http server 2"),
        ("getValue", "get value"),
        ("__", "__"),
    ],
)
def test_a_name_becomes_words(name: str, words: str) -> None:
    assert name_as_words(name) == words


def project(folder: Path) -> Path:
    for name, text in {
        "pkg/__init__.py": '"""Module docstrings give no row."""\n',
        "pkg/b.py": 'def beta():\n    """Return the second letter."""\n',
        "pkg/a.py": 'def alpha():\n    """Return the first letter."""\n',
        "pkg/broken.py": "def broken(:\n",
        "pkg/null.py": "x = 1\0\n",
        "pkg/tests/test_a.py": 'def helper():\n    """Return a thing for tests."""\n',
        ".venv/lib/other.py": 'def other():\n    """Return what others wrote."""\n',
        "env/pyvenv.cfg": "",
        "env/lib/more.py": 'def more():\n    """Return what others wrote."""\n',
        "notes.txt": "nothing\n",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_a_folder_gives_its_modules_in_the_order_of_their_names(tmp_path: Path) -> None:
    project(tmp_path / "src")
    source = PythonSource(type="python_source", path="src")
    counts = PythonCounts()

    rows = list(read_python(source, tmp_path, counts))

    assert [row.source for row in rows] == ["pkg/a.py:1", "pkg/b.py:1"]
    assert [row.group for row in rows] == ["pkg.a", "pkg.b"]
    assert [row.label for row in rows] == ["alpha", "beta"]
    assert rows[0].messages[0]["content"] == f"{INSTRUCTION}\n\ndef alpha():\n    pass"
    assert counts.unreadable_files == ["pkg/broken.py", "pkg/null.py"]
    assert counts.files == 5


def test_an_installed_package_is_read_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path)
    (tmp_path / "pkg" / "__init__.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def names(package: str) -> list[str]:
        source = PythonSource(type="python_source", package=package)
        return [file.name for file in python_files(source, tmp_path)]

    assert names("pkg")[:2] == ["pkg/__init__.py", "pkg/a.py"]
    assert names("pkg.b") == ["pkg/b.py"]


def test_an_unknown_package_is_refused_with_a_near_name(tmp_path: Path) -> None:
    source = PythonSource(type="python_source", package="pydantik")

    with pytest.raises(DataError, match=r"pydantik is not installed .*Did you mean pydantic\?"):
        python_files(source, tmp_path)


def test_the_name_of_a_distribution_leads_to_the_package_it_installs(tmp_path: Path) -> None:
    source = PythonSource(type="python_source", package="PyYAML")

    with pytest.raises(DataError, match=r"Did you mean (yaml|_yaml)\?"):
        python_files(source, tmp_path)


def test_code_without_docstrings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f():\n    pass\n")
    source = PythonSource(type="python_source", path=".")

    with pytest.raises(DataError, match="No documented function or class"):
        list(read_python(source, tmp_path, PythonCounts()))


@pytest.mark.parametrize("place", [{}, {"package": "json", "path": "src"}])
def test_a_python_source_names_one_place(place: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="either `package` or `path`"):
        PythonSource.model_validate({"type": "python_source", **place})


def test_the_digest_follows_names_and_bytes_and_not_the_folder(tmp_path: Path) -> None:
    source = PythonSource(type="python_source", path="src")
    project(tmp_path / "one" / "src")
    project(tmp_path / "two" / "src")
    first = python_digest(source, tmp_path / "one")

    assert python_digest(source, tmp_path / "two") == first

    (tmp_path / "two/src/pkg/a.py").rename(tmp_path / "two/src/pkg/c.py")
    assert python_digest(source, tmp_path / "two") != first


def test_the_standard_library_gives_thousands_of_rows_in_seconds(tmp_path: Path) -> None:
    source = PythonSource(type="python_source", package="stdlib")
    counts = PythonCounts()
    started = time.process_time()

    rows = list(read_python(source, tmp_path, counts))

    assert time.process_time() - started < 10
    assert len(rows) > 3000
    modules = {row.group for row in rows}
    assert {"json.decoder", "argparse"} <= modules
    assert not any(part in {"test", "tests", "idlelib"} for m in modules for part in m.split("."))
    # Rarely an author repeats the docstring in the code; the pipeline must never show it.
    told = sum(row.answer in row.messages[0]["content"] for row in rows)
    assert told / len(rows) < 0.01
