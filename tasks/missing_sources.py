"""The sources of a dataset that give nothing on this machine, told without reading or fetching a row."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tasks.dataset.reading.data_file import data_file
from tasks.dataset.reading.places import PATTERN, files_of_a_folder, is_url, local_path
from tasks.dataset.reading.python_files import python_files
from tasks.dataset.source_settings import (
    FilesSource,
    JsonlSource,
    PythonSource,
    Source,
    SqlSource,
)
from tasks.errors import DataError
from tasks.files import expanded
from tasks.recipe_file import Document, Loc
from tasks.recipe_secrets import block_name

_RELATIVE = "Relative paths start at the recipe's folder"


def missing_sources(document: Document, recipe_folder: Path) -> Iterator[str]:
    """A line for each source, the holdout too, whose files, folder, package or database is not here.

    A source that is itself wrongly written is passed over: its own mistake comes first. Nothing is
    asked of servers.
    """
    listed = document.get(("dataset", "sources"))
    locs: list[Loc] = [("dataset", "holdout")]
    locs += [
        ("dataset", "sources", k) for k in range(len(listed) if isinstance(listed, list) else 0)
    ]
    for loc in locs:
        source = _source(document.get(loc))
        found = _problem(source, recipe_folder) if source is not None else None
        if found is not None:
            field, text = found
            yield document.line((*loc, field), text)


def _source(value: Any) -> Source | None:
    if not isinstance(value, dict):
        return None
    try:
        source: Source = TypeAdapter[Source](Source).validate_python(value, strict=True)
    except ValidationError:
        return None
    return source


def _problem(source: Source, recipe_folder: Path) -> tuple[str, str] | None:
    """(field, what is wrong and the way out), or None."""
    try:
        if isinstance(source, FilesSource | JsonlSource):
            text = None if is_url(source.path) else _files(source, recipe_folder)
            return ("path", text) if text else None
        if isinstance(source, PythonSource):
            return _python(source, recipe_folder)
        if isinstance(source, SqlSource):
            return _database(source, recipe_folder)
    except (OSError, RuntimeError, ValueError) as error:
        # `a**b`, a folder behind a link that leads nowhere.
        field = "database" if isinstance(source, SqlSource) else "path"
        return field, f"cannot be looked up ({error}). {_RELATIVE}; correct it."
    return None


def _files(source: FilesSource | JsonlSource, recipe_folder: Path) -> str | None:
    path = local_path(source.path, recipe_folder)
    if path.is_dir():
        names = (
            (Path(folder) / name).relative_to(path).as_posix()
            for folder, _, files in os.walk(path)
            for name in files
        )
        return _none_of(names, source, f"{path} holds no file of rows")
    if PATTERN & set(source.path) and not path.exists():
        start = path
        while PATTERN & set(str(start)):
            start = start.parent
        found = start.glob(path.relative_to(start).as_posix())
        names = (file.relative_to(start).as_posix() for file in found if file.is_file())
        return _none_of(names, source, f"the pattern {path} matches no file of rows")
    if not path.exists():
        return f"{path} does not exist.{_beside(path)} {_RELATIVE}; correct it."
    if not os.access(path, os.R_OK):
        return f"{path} cannot be read by this user. Mend its permissions."
    try:
        data_file(path, str(path), path.name, source.format)
    except DataError as error:
        return str(error)
    return None


def _none_of(names: Iterator[str], source: FilesSource | JsonlSource, what: str) -> str | None:
    """None as soon as one name is a file of rows: a folder may hold millions."""
    others: list[str] = []
    for name in names:
        taken, passed_over = files_of_a_folder([name], source.format)
        if taken:
            return None
        others += passed_over[: 3 - len(others)]
    listed = f" There are {', '.join(sorted(others))}, which is not read." if others else ""
    return f"{what}.{listed} {_RELATIVE}; correct it, or give `format`."


def _beside(path: Path) -> str:
    """The files that a person may have meant."""
    if not path.parent.is_dir():
        return f" Neither does {path.parent}."
    near = sorted(
        file.name
        for file in path.parent.iterdir()
        if files_of_a_folder([file.name], None)[0] and file.is_file()
    )
    more = f" and {len(near) - 5} more" if len(near) > 5 else ""
    return f" Beside it lie {', '.join(near[:5])}{more}." if near else ""


def _python(source: PythonSource, recipe_folder: Path) -> tuple[str, str] | None:
    if source.path is not None:
        folder = (recipe_folder / expanded(source.path)).resolve()
        if not folder.is_dir():
            return "path", f"{folder} is no folder. {_RELATIVE}; correct it."
        if next(folder.rglob("*.py"), None) is None:
            return "path", f"{folder} holds no .py file. Name a folder that holds source code."
        return None
    try:
        python_files(source, recipe_folder)
    except DataError as error:
        return "package", str(error).removeprefix("dataset.sources[].package ")
    return None


def _database(source: SqlSource, recipe_folder: Path) -> tuple[str, str] | None:
    if source.database is not None:
        path = local_path(source.database, recipe_folder)
        if not path.is_file():
            # SQLite would make an empty one.
            return "database", f"{path} does not exist. {_RELATIVE}; correct it."
    elif not os.environ.get(str(source.url_variable)):
        return "url_variable", (
            f"the environment variable {source.url_variable} is not set, from which the database's "
            "URL is taken, for example postgresql+psycopg://user:password@host/name. In a deployment the "
            f"Secret block {block_name(str(source.url_variable))!r} of Prefect does as well."
        )
    return None
