"""The pydantic base of every settings class: closed, frozen, documented field by field."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A section of the recipe. Unknown keys are refused; a field's docstring is its schema description."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )
