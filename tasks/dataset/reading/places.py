"""Which files a source means: one, a folder's, those of a pattern, or copies of a URL's."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.dataset.reading.data_file import DataFile, data_file, recognised
from tasks.dataset.source_settings import FileKind, FilesSource, JsonlSource
from tasks.errors import DataError
from tasks.files import expanded
from tasks.hash_memory import HashMemory

PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class Placed:
    """A source's files in their order, and those of a folder that hold no rows by their names."""

    files: tuple[DataFile, ...]
    passed_over: tuple[str, ...] = ()
    broken_links: tuple[str, ...] = ()
    """Names of links that lead nowhere; of their files nobody knows what they held."""


def is_url(path: str) -> bool:
    """Whether fsspec must fetch it; a `file://` URL is a path."""
    return "://" in path and not path.startswith("file://")


def name_of(path: str) -> str:
    """What people call it; free of folders, which differ between machines."""
    plain = path.partition("?")[0] if is_url(path) else path
    return Path(plain).name or "folder"


def local_path(path: str, recipe_folder: Path) -> Path:
    """The path on this machine, short enough to stand before every bad line."""
    return Path(os.path.normpath(recipe_folder / expanded(path.removeprefix("file://"))))


def local_files(source: FilesSource | JsonlSource, recipe_folder: Path) -> Placed:
    """The source's files below its path, sorted by name.

    Raises: DataError when there is none.
    """
    path = local_path(source.path, recipe_folder)
    if path.is_dir():
        return _chosen(
            {file: file.relative_to(path).as_posix() for file in path.rglob("*")}, source, path
        )
    if PATTERN & set(source.path) and not path.exists():
        start = path
        while PATTERN & set(str(start)):
            start = start.parent
        found = set(start.glob(path.relative_to(start).as_posix()))
        if "**" in source.path:
            # Which it would have searched, and does not.
            found.update(filter(_is_linked_folder, start.rglob("*")))
        return _chosen({file: file.relative_to(start).as_posix() for file in found}, source, path)
    if not path.is_file():
        raise DataError(
            f"Cannot read dataset.sources[].path {source.path} ({path}): No such file or directory. "
            "Correct dataset.sources[].path (relative paths start at the recipe's folder)."
        )
    return Placed((data_file(path, str(path), path.name, source.format),))


def digest_of(files: tuple[DataFile, ...], memory: HashMemory) -> str:
    """sha256 (hex): of the file where it is one, else of all names and contents.

    Files that are as they were when `memory` hashed them are not read again.

    Raises: DataError when one cannot be read.
    """
    try:
        if len(files) == 1:
            return memory.sha256(files[0].path)
        total = hashlib.sha256()
        for file in files:
            total.update(f"{memory.sha256(file.path)} {file.name}\n".encode())
        return total.hexdigest()
    except OSError as error:
        raise DataError(
            f"Cannot read {error.filename}: {error.strerror or error}. "
            "Correct dataset.sources[].path (relative paths start at the recipe's folder)."
        ) from error


def files_of_a_folder(names: list[str], kind: FileKind | None) -> tuple[list[str], list[str]]:
    """Those of the names that are files of rows, and the others, both sorted.

    Hidden files and marks such as `_SUCCESS` are no part of the data; those of them that look like files
    of rows are named.
    """
    taken: list[str] = []
    passed_over: list[str] = []
    for name in sorted(names):
        by_suffix, _ = recognised(name)
        if any(part.startswith((".", "_")) for part in name.split("/")):
            if by_suffix is not None:
                passed_over.append(name)
            continue
        fits = by_suffix is not None if kind is None else by_suffix in (kind, None)
        (taken if fits else passed_over).append(name)
    return taken, passed_over


def _chosen(names: dict[Path, str], source: FilesSource | JsonlSource, path: Path) -> Placed:
    paths = {name: file for file, name in names.items() if file.is_file()}
    taken, passed_over = files_of_a_folder(list(paths), source.format)
    # Folders are searched without following links, which may lead in a circle.
    linked = (f"{n}/ (a linked folder)" for file, n in names.items() if _is_linked_folder(file))
    passed_over = sorted([*passed_over, *linked])
    broken = sorted(n for file, n in names.items() if file.is_symlink() and not file.exists())
    if not taken:
        raise DataError(no_files(source.path, str(path), passed_over, broken))
    return Placed(
        tuple(data_file(paths[name], str(paths[name]), name, source.format) for name in taken),
        tuple(passed_over),
        tuple(broken),
    )


def _is_linked_folder(path: Path) -> bool:
    return path.is_symlink() and path.is_dir()


def no_files(
    written: str, place: str, passed_over: list[str], broken_links: Sequence[str] = ()
) -> str:
    """Why a folder or pattern gives nothing."""
    others = f" There are {', '.join(passed_over[:5])}, which is not read." if passed_over else ""
    if broken_links:
        others += f" {', '.join(broken_links[:5])}: the link leads nowhere."
    return (
        f"dataset.sources[].path {written} ({place}) holds no file of rows.{others} "
        "Correct it (relative paths start at the recipe's folder), or give dataset.sources[].format."
    )
