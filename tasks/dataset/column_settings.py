"""How a source's columns become rows: the chat formats by name, and the recipe's own templates."""

from typing import Literal

from pydantic import model_validator

from tasks.settings import Settings

ChatFormat = Literal[
    "messages",
    "conversations",
    "prompt/completion",
    "prompt/completion/label",
    "instruction/output",
    "instruction/instances",
    "prompt/chosen/rejected",
    "chosen/rejected",
    "text",
]


class ColumnsSettings(Settings):
    """A row's turns as Jinja templates over its columns, for tables that have no known chat format.

    `{{ question }}` is a column, `{{ row["Question text"] }}` one whose name is no word. A null and a
    missing column make the row a bad row; `{{ hint or "" }}` and `{{ hint | default("") }}` allow them.
    """

    user: str | None = None
    """What the user says, for example `{{ question }}`."""
    assistant: str | None = None
    """What the assistant answers, for example `{{ answer }}`: this is what is trained."""
    system: str | None = None
    """The system prompt; a text without a template is the same in every row. Default: none."""
    rejected: str | None = None
    """The worse answer of a preference pair; kept for preference training."""
    desirable: str | None = None
    """Whether the answer is good: a template that gives `true` or `false`, for example
    `{{ stars > 3 }}`. KTO learns to give good answers and to avoid bad ones; `sft` leaves bad ones out."""
    text: str | None = None
    """A text that is learned whole, without roles and chat template; instead of `user` and `assistant`."""

    @model_validator(mode="after")
    def _turns_or_text(self) -> "ColumnsSettings":
        names = ("user", "assistant", "system", "rejected", "desirable")
        turns = {name: getattr(self, name) for name in names}
        given = [name for name, text in turns.items() if text is not None]
        if self.text is not None and given:
            raise ValueError(f"`text` stands alone; take {', '.join(given)} out, or `text`")
        if self.text is None and (missing := {"user", "assistant"} - set(given)):
            raise ValueError(
                f"{' and '.join(sorted(missing))} missing: a conversation needs `user` and "
                "`assistant`; a text that is nobody's answer is `text`"
            )
        if self.rejected is not None and self.desirable is not None:
            raise ValueError(
                "`rejected` compares two answers and `desirable` judges one; keep one of them"
            )
        return self

    @model_validator(mode="after")
    def _templates(self) -> "ColumnsSettings":
        for name in ("user", "assistant", "rejected", "desirable", "text"):
            text = getattr(self, name)
            # One word is a column's name that lacks its braces; trained as it stands it would be noise.
            if text is not None and "{{" not in text and (name != "user" or text.isidentifier()):
                raise ValueError(
                    f"`{name}` is a Jinja template over the row's columns, and {text!r} holds none. "
                    f"Write `{{{{ {text if text.isidentifier() else 'column'} }}}}`"
                )
        return self
