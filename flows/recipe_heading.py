"""What a recipe's heading says, its adapter's name and its cron: for names, which no broken recipe may prevent."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tasks.errors import LoralineError
from tasks.files import expanded
from tasks.recipe_file import read_document


def heading_of(
    path: str, overrides: Sequence[str] = (), *, otherwise: str = ""
) -> tuple[str, str | None]:
    """The recipe's name and its cron; what cannot be read is told later, by who needs it.

    A recipe without a readable name is called `otherwise`, else like its file.
    """
    name, cron = otherwise or Path(path).stem, None
    with suppress(LoralineError):
        document = read_document(expanded(path))
        found, cron = document.get(("name",)), document.get(("schedule", "cron"))
        name = found if isinstance(found, str) else name
    for override in overrides:
        field, _, value = str(override).partition("=")
        name = value.strip() if field.strip() == "name" else name
    return name, cron if isinstance(cron, str) else None
