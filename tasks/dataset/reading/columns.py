"""Turns made by the recipe's own templates over a row's columns."""

from typing import Any

from tasks.dataset.column_settings import ColumnsSettings
from tasks.dataset.reading.conversations import Conversation
from tasks.dataset.reading.preferences import verdict
from tasks.dataset.reading.problem import RowProblem, check_characters, kind_of
from tasks.dataset.reading.turn_order import checked
from tasks.dataset.reading.turns import pair
from tasks.errors import DataError

PARTS = ("system", "user", "assistant", "rejected", "desirable", "text")


class ColumnTemplates:
    """The compiled templates of `columns:`; what they say of a row is a conversation of one answer, or
    a text.

    Raises: DataError when a template is not Jinja.
    """

    def __init__(self, settings: ColumnsSettings) -> None:
        from jinja2 import StrictUndefined, TemplateSyntaxError, meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, finalize=_printable, keep_trailing_newline=True
        )
        self.used: set[str] = set()
        """Columns that the templates name."""
        self._templates = {}
        for part in PARTS:
            text = getattr(settings, part)
            if text is None:
                continue
            try:
                self.used |= meta.find_undeclared_variables(environment.parse(text)) - {"row"}
                self._templates[part] = environment.from_string(text)
            except TemplateSyntaxError as error:
                raise DataError(
                    f"dataset.sources[].columns.{part} is not a Jinja template: {error.message} "
                    f"(line {error.lineno} of it). A column is written as {{{{ name }}}}."
                ) from error

    def read(self, row: dict[str, Any]) -> list[Conversation]:
        """The row's one conversation.

        Raises: RowProblem when a column is missing, null or no text, or a turn comes out empty.
        """
        texts = {part: self._text(part, row) for part in self._templates}
        if "text" in texts:
            return [Conversation([], text=texts["text"])]
        messages = checked(pair(texts["user"], texts["assistant"], texts.get("system")), "columns")
        if "desirable" in texts:
            return [
                Conversation(messages, desirable=verdict(texts["desirable"], "columns.desirable"))
            ]
        rejected = texts.get("rejected")
        if rejected is None:
            return [Conversation(messages)]
        if rejected == texts["assistant"]:
            raise RowProblem(
                "columns.assistant and columns.rejected say the same: there is nothing to prefer"
            )
        return [Conversation(messages, ({"role": "assistant", "content": rejected},))]

    def _text(self, part: str, row: dict[str, Any]) -> str:
        from jinja2 import TemplateError

        try:
            # Compiled templates take any name; `row` reaches those that are no Python words.
            text = self._templates[part].render({**row, "row": row})
        except RowProblem as problem:
            raise RowProblem(f"columns.{part}: {problem}") from problem
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise RowProblem(
                f"columns.{part}: {error}; columns here: {', '.join(map(str, row)) or 'none'}"
            ) from error
        if not text.strip():
            raise RowProblem(f"columns.{part} comes out empty")
        check_characters(text, f"columns.{part}")
        return str(text)


def _printable(value: Any) -> Any:
    """Refuse what would stand in the text as Python's own spelling of it: `None`, `['a']`."""
    from jinja2 import Undefined

    if value is None:
        raise RowProblem('a column is null; write {{ name or "" }} where that is meant')
    if isinstance(value, dict | list):
        raise RowProblem(f"a column is {kind_of(value)}; write {{{{ name | tojson }}}} or a loop")
    # Undefined raises by itself when it is printed, and says which column it is.
    return value if isinstance(value, str | Undefined) else str(value)
