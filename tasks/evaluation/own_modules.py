"""A look at metric modules of the user's own, without running them: what would end their loading later."""

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

_IMPORTED = re.compile(r"(?:import|from)\s+\.?([^\s.]+)")
"""What `evaluate` takes for the imported name; it reads only lines that begin with the statement."""


def mistakes_of_modules(folder: Path, modules: dict[str, Path]) -> Iterator[str]:
    """`file:line: what is wrong with it: the way out` for each of `modules`, and for each file in
    `folder` that looks like one and could not be named in a rule."""
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/*.py")]):
        if path.parent != folder and path.parent.name != path.stem:
            continue
        if not path.stem.startswith("_") and not path.stem.isidentifier():
            yield (
                f"{path}: a metric's name has letters, digits and underscores, so that rules can say "
                f"custom/<name>. Rename it to {re.sub(r'[^0-9a-zA-Z_]', '_', path.stem)}.py, or let it begin "
                "with an underscore if it is none."
            )
    for path in modules.values():
        yield from _mistakes(path)


def _mistakes(path: Path) -> Iterator[str]:
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except SyntaxError as error:
        yield f"{path}:{error.lineno}: is no Python: {error.msg}."
        return
    except (OSError, ValueError) as error:
        yield f"{path}: cannot be read as Python: {error}."
        return
    lines = source.splitlines()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            problem = _import_mistake(node, lines[node.lineno - 1], path.parent)
            if problem:
                yield f"{path}:{node.lineno}: {problem}"
    if not any(isinstance(node, ast.ClassDef) and node.bases for node in tree.body):
        yield (
            f"{path}: holds no class that derives from evaluate.Metric. Write one, or let the file's name "
            "begin with an underscore if it is no metric."
        )


def _import_mistake(node: ast.Import | ast.ImportFrom, line: str, folder: Path) -> str:
    read = _IMPORTED.match(line)
    if isinstance(node, ast.ImportFrom) and node.level:
        helper = (node.module or "").partition(".")[0]
        if node.level > 1 or not helper:
            return (
                f"`{line.strip()}`: a helper must lie beside the module and be imported by "
                "`from .helper import name`."
            )
        if not (folder / f"{helper}.py").is_file():
            return f"`{line.strip()}`: there is no {folder / helper}.py."
        return ""
    if read is not None and not read[1].isidentifier():
        # It would ask for a package `datasets,`.
        return f"`{line.strip()}`: `evaluate` reads one package a line. Write an `import` line for each."
    names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    for name in (name.partition(".")[0] for name in names):
        if _is_missing(name):
            return (
                f"imports `{name}`, which is not installed here. Install it with pip; a helper that lies "
                f"beside the module is imported by `from .{name} import ...`."
            )
    return ""


def _is_missing(package: str) -> bool:
    try:
        return find_spec(package) is None
    except (ImportError, ValueError):
        return True
