"""Every mistake of a recipe that can be told at once: its own, and what it names that is not on this machine.

Needs neither torch nor a server and takes less than a second. What only the loaded model or a server
can tell, the stages find out.
"""

from pathlib import Path

from tasks.files import expanded
from tasks.recipe import Loaded, read_recipe
from tasks.recipe_file import Document


def check_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Loaded:
    """Read a recipe as `read_recipe` does, and look at its data and its base model.

    Raises: RecipeError with every mistake, one a line: `file:line: field: what is wrong: way out`, or
    `--set field=value: ...` for one that an override brought.
    """
    place = expanded(path).absolute()

    def more(document: Document) -> list[str]:
        from tasks.base_fit import base_misfits
        from tasks.evaluation.preflight import evaluation_misfits
        from tasks.missing_sources import missing_sources

        return [
            *missing_sources(document, place.parent),
            *base_misfits(document, place),
            *evaluation_misfits(document, place.parent),
        ]

    return read_recipe(path, overrides, more=more)
