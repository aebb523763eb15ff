"""The chat formats that a JSONL row may have, and how each becomes messages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tasks.dataset.rows import Message, short_hash

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
"""Names of roles in the wild (OpenAI, ShareGPT, Gemma) and what they mean."""


class RowProblem(Exception):
    """What is wrong with one row, in words that follow `file:line: `."""


@dataclass(frozen=True)
class Format:
    """A way to write conversations as JSON objects."""

    name: str
    columns: tuple[str, ...]
    """A row of this format has them all."""
    wants: str
    """The columns in words, for messages."""
    read: Callable[[dict[str, Any]], list[list[Message]]]
    """A row's conversations; raises RowProblem."""
    optional: tuple[str, ...] = ()
    group: Callable[[dict[str, Any]], str] | None = None
    """The row's default group where it is not the prompt."""


def format_of(row: dict[str, Any]) -> Format:
    """The one format whose columns the row has.

    Raises: RowProblem when there is none, or more than one.
    """
    fitting = [form for form in FORMATS if all(column in row for column in form.columns)]
    if len(fitting) == 1:
        return fitting[0]
    seen = f"columns here: {', '.join(map(str, row)) or 'none'}."
    if not fitting:
        raise RowProblem(f"unknown format; {seen}")
    names = " and ".join(form.name for form in fitting)
    raise RowProblem(f"the columns fit {names}; keep those of one format; {seen}")


def _from_turns(row: dict[str, Any], column: str) -> list[list[Message]]:
    messages = [_message(turn, f"{column}[{i}]") for i, turn in enumerate(_list(row, column))]
    return [_checked(messages, column)]


def _from_messages(row: dict[str, Any]) -> list[list[Message]]:
    return _from_turns(row, "messages")


def _from_conversations(row: dict[str, Any]) -> list[list[Message]]:
    return _from_turns(row, "conversations")


def _from_prompt(row: dict[str, Any]) -> list[list[Message]]:
    """Text on both sides, or TRL's conversational form: a list of messages on both sides."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        turns = [(turn, f"prompt[{i}]") for i, turn in enumerate(prompt)]
        turns += [(turn, f"completion[{i}]") for i, turn in enumerate(completion)]
        return [_checked([_message(turn, where) for turn, where in turns], "prompt + completion")]
    return [_pair(_text(row, "prompt"), _text(row, "completion"))]


def _from_instruction(row: dict[str, Any]) -> list[list[Message]]:
    instruction = _text(row, "instruction")
    return [_pair(_with_input(instruction, row.get("input"), "input"), _text(row, "output"))]


def _from_instances(row: dict[str, Any]) -> list[list[Message]]:
    """An instruction with several examples of it, as in Self-Instruct's seed tasks."""
    instruction = _text(row, "instruction")
    instances = _list(row, "instances")
    if not instances:
        raise RowProblem("instances is empty")
    pairs = []
    for i, instance in enumerate(instances):
        where = f"instances[{i}]"
        if not isinstance(instance, dict):
            raise RowProblem(f"{where} must be an object with input and output")
        prompt = _with_input(instruction, instance.get("input"), f"{where}.input")
        pairs.append(_pair(prompt, _text(instance, "output", f"{where}.")))
    return pairs


def _instances_group(row: dict[str, Any]) -> str:
    # All examples of an instruction stay on one side: they are variations of one task.
    return "instruction-" + short_hash(" ".join(row["instruction"].split()).casefold())


FORMATS = (
    Format("messages", ("messages",), "a list of {role, content}", _from_messages),
    Format("conversations", ("conversations",), "a list of {from, value}", _from_conversations),
    Format("prompt/completion", ("prompt", "completion"), "two texts", _from_prompt),
    Format(
        "instruction/output",
        ("instruction", "output"),
        "two texts and an optional input",
        _from_instruction,
        optional=("input",),
    ),
    Format(
        "instruction/instances",
        ("instruction", "instances"),
        "a text and a list of {input, output}",
        _from_instances,
        group=_instances_group,
    ),
)


def _pair(prompt: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _with_input(instruction: str, given: object, where: str) -> str:
    if given is None or given == "":
        return instruction
    if not isinstance(given, str):
        raise RowProblem(f"{where} must be text")
    _encodable(given, where)
    return f"{instruction}\n\n{given}" if given.strip() else instruction


def _text(row: dict[str, Any], column: str, prefix: str = "") -> str:
    where = prefix + column
    if column not in row:
        raise RowProblem(f"no {where}")
    value = row[column]
    if value is None:
        raise RowProblem(f"{where} is null")
    if not isinstance(value, str):
        raise RowProblem(f"{where} must be text")
    if not value.strip():
        raise RowProblem(f"{where} is empty")
    _encodable(value, where)
    return value


def _list(row: dict[str, Any], column: str) -> list[Any]:
    value = row[column]
    if not isinstance(value, list):
        raise RowProblem(f"{column} is null" if value is None else f"{column} must be a list")
    return value


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise RowProblem(f"{where} must be an object")
    role_key, text_key = ("from", "value") if "from" in turn else ("role", "content")
    role = turn.get(role_key)
    if not isinstance(role, str) or role not in ROLES:
        raise RowProblem(f"{where}.{role_key} is {role!r}; known roles: {', '.join(ROLES)}")
    for key in ("tool_calls", "function_call"):
        if turn.get(key):
            raise RowProblem(f"{where} has {key}, which this version does not train on")
    if turn.get("weight") == 0:
        raise RowProblem(f"{where} has weight 0: every assistant turn is trained, take the row out")
    return {"role": ROLES[role], "content": _content(turn, text_key, where)}


def _content(turn: dict[str, Any], key: str, where: str) -> str:
    """Text, or OpenAI's list of text parts joined."""
    parts = turn.get(key)
    if isinstance(parts, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
            raise RowProblem(f"{where}.{key} has parts that are not text")
        turn = {key: "".join(_text(part, "text", f"{where}.{key}[].") for part in parts)}
    return _text(turn, key, f"{where}.")


def _checked(messages: list[Message], column: str) -> list[Message]:
    """The messages, if they are: at most one system turn first, then user and assistant in turn."""
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns:
        raise RowProblem(f"{column} has no user and no assistant turn")
    for i, role in enumerate(turns):
        wanted = ("user", "assistant")[i % 2]
        if role != wanted:
            index = i + len(roles) - len(turns)
            raise RowProblem(f"{column}[{index}] is the {role}'s turn where the {wanted}'s is due")
    if turns[-1] != "assistant":
        raise RowProblem(f"{column} ends with the {turns[-1]}'s turn, not with an answer")
    return messages


def _encodable(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowProblem(
            f"{where} has half of a surrogate pair (position {error.start}), which is no character"
        ) from error
