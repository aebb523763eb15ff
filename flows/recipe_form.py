"""What Prefect's form asks of a person who starts a run of a recipe, made from the recipe's own schema."""

from typing import Annotated

from pydantic import Field

from tasks.recipe import Recipe

EXAMPLES = [
    "training.peft_config.r=8",
    "training.training_config.learning_rate=1.0e-4",
    "evaluation.max_new_tokens=128",
]
# The sections, not every field: pasted dictionaries have names of their own, and a field that does not exist
# is told by the run within a second, with what was meant.
_FIELD = rf"^\s*({'|'.join(Recipe.model_fields)})(\.[^.=]+)*\s*="

Override = Annotated[
    str,
    Field(
        json_schema_extra={
            "title": "Field of the recipe and its value",
            "description": "`section.field=value`, as on the command line after `--set`; the value is YAML.",
            "pattern": _FIELD,
            "examples": [*EXAMPLES],
        }
    ),
]
"""One changed field. In the schema only: a flow that is called as a function tells of mistakes itself."""
