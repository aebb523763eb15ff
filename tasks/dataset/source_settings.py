"""The recipe's list `dataset.sources`: the kinds of sources and their fields."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.settings import Settings


class JsonlSource(Settings):
    """A JSONL file of chat conversations, prompt/completion pairs or instruction/input/output rows."""

    type: Literal["jsonl"]
    path: str
    """The file, relative to the recipe."""
    group: str | None = None
    """Column whose value is the row's group (a document or conversation id): a group is never split. Default: the prompt."""


class PythonSource(Settings):
    """Python code: one conversation for each documented function or class."""

    type: Literal["python_source"]
    package: str | None = None
    """An installed package, or `stdlib` for the running Python's standard library."""
    path: str | None = None
    """A folder of .py files, relative to the recipe; instead of `package`."""
    max_code_characters: int = Field(default=600, ge=80)
    """Budget for the code shown in the user's turn; a longer body is cut at a line's end."""
    max_rows: int | None = Field(default=None, ge=1)
    """Keep this many rows, chosen by hash so that the choice is stable. Default: all."""

    @model_validator(mode="after")
    def _one_place(self) -> "PythonSource":
        if (self.package is None) == (self.path is None):
            raise ValueError("a python_source has either `package` or `path`")
        return self


Source = Annotated[JsonlSource | PythonSource, Field(discriminator="type")]
