"""`loraline lock RECIPE [--update]`: pin the recipe's base model to a commit of the Hub."""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Write the commit of the recipe's base model into the lock file beside the recipe. "
        "Runs use that commit until --update moves it."
    )
    parser.add_argument("recipe", type=Path, help="the recipe's YAML file")
    parser.add_argument(
        "--update", action="store_true", help="ask the Hub again and move the lock to its answer"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override a field, for example base.revision=v2",
    )


def run(args: argparse.Namespace) -> int:
    """Pin the base and say what changed. Raises UserError for a wrong recipe or an unknown model."""
    from tasks.base import lock_path, locked_commit
    from tasks.recipe import load_recipe

    recipe = load_recipe(args.recipe, tuple(args.overrides))
    if recipe.base.is_local:
        sys.stdout.write(
            f"{args.recipe}: base {recipe.base.model} is a local folder; there is no commit to lock. "
            "Its sha256 is checked in every run.\n"
        )
        return 0
    path = lock_path(args.recipe)
    before = _commit_before(path, args.recipe) if path.is_file() else None
    commit = locked_commit(recipe.base, args.recipe, update=args.update)
    name = f"{recipe.base.model}@{recipe.base.revision}"
    if before == commit:
        change = "unchanged"
    elif before is None:
        change = "new"
    else:
        change = f"was {before}"
    sys.stdout.write(f"{path}: {name} is commit {commit} ({change})\n")
    return 0


def _commit_before(path: Path, recipe: Path) -> str | None:
    """The commit that --update leaves behind; None for a corrupted one, which --update replaces."""
    from tasks.base import read_lock
    from tasks.errors import BaseModelError

    try:
        return str(read_lock(path, recipe)["commit"])
    except BaseModelError:
        return None
