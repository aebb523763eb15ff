"""Which Python files a `python_source` reads, in an order that no file system decides."""

import difflib
import importlib.util
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tasks.dataset.source_settings import PythonSource
from tasks.errors import DataError
from tasks.files import expanded

SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests"})
"""Other people's packages, and tests: what they document is not how a library is written."""
SKIPPED_IN_STDLIB = frozenset({"idlelib", "lib2to3", "turtledemo", "lib-dynload"})
"""Applications and demonstrations that only some distributions ship."""
MACHINE_MADE = ("_sysconfigdata_", "sitecustomize.py", "usercustomize.py")
"""Written by the build or the administrator of a machine: no part of the library's text."""


@dataclass(frozen=True)
class PythonFile:
    """A file and its name below the source's root, which is the same on every machine."""

    path: Path
    name: str
    """For example `json/decoder.py`; starts with the package's name where one is given."""


def python_files(source: PythonSource, recipe_folder: Path) -> list[PythonFile]:
    """The source's files, sorted by name.

    Raises: DataError when the package or the folder does not exist or holds no .py file.
    """
    if source.path is not None:
        folder = (recipe_folder / expanded(source.path)).resolve()
        if not folder.is_dir():
            raise DataError(
                f"dataset.sources[].path {source.path} is {folder}, which is no folder. "
                "Correct it (relative paths start at the recipe's folder)."
            )
        files = _below(folder, "", SKIPPED_FOLDERS)
        where = str(folder)
    elif source.package == "stdlib":
        folder = Path(sysconfig.get_path("stdlib"))
        files = _below(folder, "", SKIPPED_FOLDERS | SKIPPED_IN_STDLIB)
        files = [file for file in files if not file.path.name.startswith(MACHINE_MADE)]
        where = f"the standard library ({folder})"
    else:
        assert source.package is not None
        files = _package(source.package)
        where = f"package {source.package}"
    if not files:
        raise DataError(f"No .py file in {where}. Name a package or folder that holds source code.")
    return sorted(files, key=lambda file: file.name)


def _below(folder: Path, prefix: str, skipped: frozenset[str]) -> list[PythonFile]:
    files = []
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        folders[:] = [
            name
            for name in folders
            if name not in skipped
            and not name.startswith((".", "config-"))
            # A virtual environment inside a project holds everybody's code but the project's.
            and not (here / name / "pyvenv.cfg").exists()
        ]
        for name in names:
            if name.endswith(".py"):
                path = here / name
                files.append(PythonFile(path, prefix + path.relative_to(folder).as_posix()))
    return files


def _package(name: str) -> list[PythonFile]:
    """The files of an installed package, a package below one (`a.b`) or a single module.

    Nothing is imported: only the top-level name is looked up, the rest is folders.
    """
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise DataError(_no_package(name, top))
    if spec.submodule_search_locations is None:
        origin = Path(spec.origin or "")
        if rest or origin.suffix != ".py":
            raise DataError(
                f"dataset.sources[].package {name} has no Python source here ({spec.origin}). "
                "Name a package whose .py files are installed."
            )
        return [PythonFile(origin, origin.name)]
    inner = "/".join(rest)
    files: dict[str, PythonFile] = {}
    for location in spec.submodule_search_locations:
        folder = Path(location) / inner
        module = folder.with_suffix(".py")
        if folder.is_dir():
            found = _below(folder, "/".join([top, *rest, ""]), SKIPPED_FOLDERS)
        elif rest and module.is_file():
            found = [PythonFile(module, "/".join([top, *rest]) + ".py")]
        else:
            continue
        for file in found:
            # Python too takes the first of two files with one name.
            files.setdefault(file.name, file)
    if not files:
        raise DataError(_no_package(name, top))
    return list(files.values())


def _no_package(name: str, top: str) -> str:
    from importlib.metadata import packages_distributions

    known = packages_distributions()
    close = difflib.get_close_matches(top, [*known, "stdlib", *sys.stdlib_module_names], n=1)
    # A distribution's name is often not what one imports: scikit-learn is sklearn.
    wanted = top.lower().replace("_", "-")
    imported = [module for module, names in known.items() if wanted in map(str.lower, names)]
    hint = next(iter([*imported, *close]), None)
    mean = f" Did you mean {hint}?" if hint and hint != top else ""
    return (
        f"dataset.sources[].package {name} is not installed in {sys.prefix}.{mean} "
        "Install it, name another package, or give a folder with `path`."
    )
