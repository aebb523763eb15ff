"""Collect documented Python code from the installed packages, without the standard library."""

import ast
import hashlib
import json
import os
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

# Packages that are, contain or re-implement parts of the standard library.
STDLIB_COPIES = {
    "_distutils_hack",
    "_multiprocess",
    "backports",
    "cffi",
    "cloudpickle",
    "defusedxml",
    "dill",
    "exceptiongroup",
    "importlib_metadata",
    "importlib_resources",
    "multiprocess",
    "pip",
    "pkg_resources",
    "pycparser",
    "regex",
    "setuptools",
    "six.py",
    "typing_extensions.py",
    "wheel",
    "zipp",
}
# Folders with copies of other projects, back-ported standard library code, or tests.
SKIPPED_FOLDERS = {
    "_backport",
    "_backports",
    "_distutils",
    "_vendor",
    "_vendored",
    "backports",
    "extern",
    "externals",
    "polyfills",
    "test",
    "tests",
    "third_party",
    "typeshed",
    "vendor",
}
SKIPPED_FILES = {"_importlib.py", "_inspect.py", "_stdlib.py", "six.py", "conftest.py"}
# One package may hold thousands of generated variants of one function; a few of them suffice.
MAX_SIMILAR = 6
MAX_CHARACTERS = 5_000
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
ROLE = re.compile(r":(?:[a-z]+:)?[a-z]+:`[~!]?([^`<]+?)(?:\s*<[^`]*>)?`")


@dataclass(frozen=True)
class Item:
    """One documented function or class."""

    package: str
    name: str
    signature: str
    body: str
    doc: str


@dataclass
class Counts:
    """What was found, kept and dropped."""

    files: int = 0
    found: int = 0
    stdlib_docs: int = 0
    stdlib_bodies: int = 0
    duplicates: int = 0
    similar: int = 0
    kept: int = 0


def cache_folder() -> Path:
    """Return the folder for built data: in the state folder, which git ignores."""
    state = os.environ.get("LORALINE_HOME") or Path(__file__).resolve().parents[2] / ".loraline"
    return Path(state) / "cache" / "starter"


def normalise(text: str) -> str:
    """Return the text's words in lower case, so that layout and punctuation do not matter."""
    return " ".join(re.findall(r"\w+", text.lower()))


def first_paragraph(doc: str) -> str:
    """Return the first paragraph of a documentation string on one line."""
    return " ".join(doc.strip().split("\n\n")[0].split())


def digest(text: str) -> str:
    """Return a short fingerprint of the normalised text."""
    return hashlib.sha1(normalise(text).encode()).hexdigest()[:16]


def code_without_docs(node: Definition, lines: list[str]) -> tuple[str, str]:
    """Return a definition's signature and its body, without any documentation string in it."""
    dropped: set[int] = set()
    for inner in ast.walk(node):
        if isinstance(inner, Definition) and ast.get_docstring(inner, clean=False) is not None:
            head = inner.body[0]
            dropped.update(range(head.lineno, (head.end_lineno or head.lineno) + 1))
    kept = {
        number: lines[number - 1].rstrip()
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        if number not in dropped and lines[number - 1].strip()
    }
    start = node.body[0].lineno
    indent = " " * node.col_offset
    lines_of = {number: line.removeprefix(indent) for number, line in kept.items()}
    signature = "\n".join(line for number, line in lines_of.items() if number < start)
    body = "\n".join(line for number, line in lines_of.items() if number >= start)
    return signature, body


def items_of(source: str, package: str) -> Iterator[Item]:
    """Yield the documented functions and classes of one source file."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, Definition):
            continue
        doc = ast.get_docstring(node)
        signature, body = code_without_docs(node, lines)
        if doc and doc.strip() and signature:
            yield Item(package, node.name, signature, body, doc.strip())


def read_items(job: tuple[str, str]) -> list[Item]:
    """Return the items of one file, or none where it is not valid Python of this version."""
    path, package = job
    try:
        return list(items_of(Path(path).read_text(encoding="utf-8"), package))
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
        return []


def package_files(root: Path) -> list[tuple[str, str]]:
    """Return the path and the package of each usable source file of the installed packages."""
    jobs = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        top = parts[0]
        if top in STDLIB_COPIES or SKIPPED_FOLDERS.intersection(parts[:-1]):
            continue
        if path.name in SKIPPED_FILES or path.name.startswith("test_"):
            continue
        jobs.append((str(path), top.removesuffix(".py")))
    return jobs


def stdlib_fingerprints() -> tuple[set[str], set[str]]:
    """Return fingerprints of the running interpreter's documentation strings and bodies."""
    root = Path(sysconfig.get_path("stdlib"))
    jobs = [
        (str(path), "stdlib")
        for path in root.rglob("*.py")
        if not {"site-packages", "dist-packages"}.intersection(path.parts)
    ]
    docs: set[str] = set()
    bodies: set[str] = set()
    with ProcessPoolExecutor(2) as pool:
        for items in pool.map(read_items, jobs, chunksize=32):
            for item in items:
                docs.update((digest(item.doc), digest(first_paragraph(item.doc))))
                bodies.add(digest(item.body))
    # Many functions have no body besides the documentation string, or only `pass`.
    bodies -= {digest(""), digest("pass"), digest("...")}
    return docs, bodies


def clean_doc(doc: str) -> str:
    """Return the documentation string with Sphinx roles reduced to their text."""
    return ROLE.sub(lambda match: match[1], doc)[:MAX_CHARACTERS]


def is_stdlib(item: Item, docs: set[str]) -> bool:
    """Say whether the item's documentation or its first paragraph is in the standard library."""
    return digest(item.doc) in docs or digest(first_paragraph(item.doc)) in docs


def collect() -> tuple[list[Item], Counts]:
    """Return the corpus: documented code of the installed packages, each piece once."""
    docs, bodies = stdlib_fingerprints()
    counts, items = Counts(), []
    seen: set[str] = set()
    similar: Counter[tuple[str, ...]] = Counter()
    jobs = package_files(Path(sysconfig.get_path("purelib")))
    counts.files = len(jobs)
    with ProcessPoolExecutor(2) as pool:
        for found in pool.map(read_items, jobs, chunksize=32):
            for item in found:
                counts.found += 1
                key = digest(item.body + " " + item.doc)
                shape = (item.package, item.name, *normalise(item.doc).split()[:2])
                if is_stdlib(item, docs):
                    counts.stdlib_docs += 1
                elif digest(item.body) in bodies:
                    counts.stdlib_bodies += 1
                elif key in seen:
                    counts.duplicates += 1
                elif similar[shape] >= MAX_SIMILAR:
                    counts.similar += 1
                else:
                    similar[shape] += 1
                    seen.add(key)
                    items.append(item)
    counts.kept = len(items)
    for item in items:
        assert not is_stdlib(item, docs), f"standard library text in the corpus: {item.name}"
        assert digest(item.body) not in bodies, f"standard library code: {item.name}"
    return [replace(i, body=i.body[:MAX_CHARACTERS], doc=clean_doc(i.doc)) for i in items], counts


def load() -> list[Item]:
    """Return the corpus from the cache, building it first where it is missing."""
    path = cache_folder() / "corpus.jsonl"
    if not path.exists():
        items, counts = collect()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(item)) + "\n" for item in items)
        (path.parent / "counts.json").write_text(json.dumps(asdict(counts), indent=2) + "\n")
    with path.open(encoding="utf-8") as file:
        return [Item(**json.loads(line)) for line in file]


if __name__ == "__main__":
    corpus = load()
    print((cache_folder() / "counts.json").read_text(), file=sys.stderr)
    for package, count in Counter(item.package for item in corpus).most_common(12):
        print(f"{count:7d} {package}", file=sys.stderr)
