"""`loraline schema [--write]`: the recipe's JSON Schema, for editors."""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Print the JSON Schema of a recipe. An editor that knows it completes and checks recipes: "
        "start the recipe with `# yaml-language-server: $schema=PATH`."
    )
    parser.add_argument(
        "--write",
        nargs="?",
        type=Path,
        const=Path("recipes/recipe.schema.json"),
        metavar="FILE",
        help="write it to FILE instead (default: %(const)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the schema, or write it. Raises UserError when the file cannot be written."""
    from tasks.errors import UserError
    from tasks.recipe_schema import recipe_schema, render

    text = render(recipe_schema())
    if args.write is None:
        sys.stdout.write(text)
        return 0
    try:
        args.write.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{args.write}: cannot be written ({error.strerror}). Name a file in a folder that "
            "exists: `loraline schema --write FILE`."
        ) from error
    sys.stderr.write(f"Wrote {args.write}\n")
    return 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    add_arguments(arguments)
    sys.exit(run(arguments.parse_args()))
