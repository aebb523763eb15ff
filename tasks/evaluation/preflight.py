"""What the section `evaluation` names that is not on this machine, told with its line before anything runs."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from tasks.evaluation.files import misfits
from tasks.evaluation.settings import EvaluationSettings
from tasks.recipe_file import Document


def evaluation_misfits(document: Document, recipe_folder: Path) -> Iterator[str]:
    """A line for each file, folder or package that is missing.

    A section that is itself wrongly written is passed over: its own mistake comes first.
    """
    written = document.get(("evaluation",))
    if not isinstance(written, dict):
        return
    try:
        settings = EvaluationSettings.model_validate(written, strict=True)
    except ValidationError:
        return
    for field, text in misfits(settings, recipe_folder):
        loc = tuple(int(step) if step.isdecimal() else step for step in field)
        if field[-1] == "path" and document.get(("evaluation", *loc)) is None:
            # Written in short: `retention: file.jsonl`.
            loc = loc[:-1]
        yield document.line(("evaluation", *loc), text)
