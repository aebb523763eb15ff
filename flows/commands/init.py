"""`loraline init`: a working folder for a team's own repository, with a recipe made for its data."""

import argparse
import os
import shlex
from pathlib import Path

from flows.program import program
from flows.working_folder import Data, Written, names_folder, write_working_folder
from tasks.base_folder import folder_problem
from tasks.errors import UserError
from tasks.files import expanded
from tasks.names import NAME_IN_WORDS, slug


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("directory", metavar="DIR", help="the folder to write; may exist")
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="a file of conversations (JSONL, JSON, CSV, TSV, Parquet, Arrow); the recipe refers to it",
    )
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="Hub id or folder of the base model (default: the small model that comes with loraline)",
    )
    parser.add_argument(
        "--name", help="name of the adapter (default: the data file's, else docstrings)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the folder, load the recipe it holds, and say how to go on."""
    from tasks.recipe import load_recipe

    folder = Path(args.directory)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file. Name a folder, which may not exist yet.")
    data = _data(Path(args.data)) if args.data else None
    name = slug(args.name or (_bare_name(data.path) if data else "docstrings"))
    if args.name and name != args.name:
        raise UserError(
            f"The name {args.name!r} cannot be used: a name {NAME_IN_WORDS}. "
            f"How about --name {name}?"
        )
    context = None
    if args.base and names_folder(args.base):
        given = expanded(args.base)
        if problem := folder_problem(given.absolute()):
            raise UserError(f"--base {args.base} {problem}")
        context = _context(given)
    written = write_working_folder(folder, name=name, base=args.base, data=data, context=context)
    load_recipe(written.recipe)
    _tell(folder, written, data, starter=args.base is None)
    return 0


def _context(base: Path) -> int | None:
    from tasks.model_files import Unreadable, base_context

    try:
        return base_context(base)
    except Unreadable as error:
        raise UserError(f"--base: {error}") from error


def _tell(folder: Path, written: Written, data: Data | None, *, starter: bool) -> None:
    recipe = written.recipe.relative_to(folder)
    print(f"Wrote {folder}:")
    print(f"  {recipe}  the recipe; look through it")
    if starter:
        print("  starter/  the base model that comes with loraline")
    for name in ("README.md", ".gitignore", "recipes/recipe.schema.json"):
        if folder / name not in written.kept:
            print(f"  {name}")
    ignored_by_git = (folder / ".gitignore").read_text(encoding="utf-8").split()
    if not {".loraline/", ".loraline"} & set(ignored_by_git):
        print("Your .gitignore stays as it is; add the line `.loraline/` to it.")
    if data:
        ignored = f"; not used: {', '.join(data.ignored)}" if data.ignored else ""
        print(f"{data.path}: {data.format}, {data.lines:,} rows{ignored}")
    print("Next:")
    if folder.resolve() != Path.cwd():
        print(f"  cd {shlex.quote(os.fspath(folder))}")
    call = program(folder.resolve())
    print(f"  {call} check {recipe}")
    print(f"  {call} run {recipe}")


def _bare_name(path: Path) -> str:
    from tasks.dataset.reading.data_file import bare_name

    return bare_name(path.name)


def _data(path: Path) -> Data:
    from tasks.dataset.reading.detecting import count_rows, detect

    found = detect(path)
    return Data(
        path, found.kind, found.format, found.columns, found.ignored, lines=count_rows(path)
    )
