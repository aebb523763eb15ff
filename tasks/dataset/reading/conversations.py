"""What the rows of each chat format say, as messages."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from tasks.dataset.reading.problem import RowProblem, check_characters, list_of, parsed, text_of
from tasks.dataset.reading.tools import tools
from tasks.dataset.reading.turn_order import checked
from tasks.dataset.reading.turns import messages_of, pair, with_system
from tasks.dataset.rows import Message, short_hash


@dataclass(frozen=True)
class Conversation:
    """What a row, or one of its instances, says."""

    messages: list[Message]
    rejected: tuple[Message, ...] = ()
    """The worse ending, instead of the last answer."""
    tools: tuple[dict[str, Any], ...] = ()
    desirable: bool | None = None
    """Whether the last answer was judged good; None without a verdict."""
    text: str | None = None
    """What the row says where it is no conversation; there are no messages then."""


def completed(
    conversations: list[Conversation], row: dict[str, Any], columns: Collection[str]
) -> list[Conversation]:
    """The conversations with what stands beside their turns: the system prompt, the tools.

    `columns` are those of `system` and `tools` that the row's format has.

    Raises: RowProblem for two different system prompts, or what are no tools.
    """
    system = system_of(row) if "system" in columns else None
    offered = tools(row.get("tools")) if "tools" in columns else ()
    if system is None and not offered:
        return conversations
    return [
        replace(one, messages=with_system(one.messages, system), tools=offered)
        for one in conversations
    ]


def from_messages(row: dict[str, Any], unused: set[str]) -> list[Conversation]:
    """OpenAI's list of {role, content}. Raises: RowProblem, as all of these do.

    `unused`, here and below, gains the keys of turns that no conversation is made of.
    """
    return [Conversation(checked(turns_of(row, "messages", unused), "messages"))]


def from_conversations(row: dict[str, Any], unused: set[str]) -> list[Conversation]:
    """ShareGPT's list of {from, value}."""
    return [Conversation(checked(turns_of(row, "conversations", unused), "conversations"))]


def from_prompt(row: dict[str, Any], unused: set[str]) -> list[Conversation]:
    """Text on both sides, or TRL's conversational form: a list of messages on both sides."""
    if holds_turns(row["prompt"]) and holds_turns(row["completion"]):
        turns = turns_of(row, "prompt", unused) + turns_of(row, "completion", unused)
        return [Conversation(checked(turns, "prompt + completion"))]
    return [Conversation(pair(text_of(row, "prompt"), text_of(row, "completion")))]


def from_instruction(row: dict[str, Any], unused: set[str]) -> list[Conversation]:
    """Alpaca's instruction, input and output."""
    prompt = _with_input(text_of(row, "instruction"), row.get("input"), "input")
    return [Conversation(pair(prompt, text_of(row, "output")))]


def from_instances(row: dict[str, Any], unused: set[str]) -> list[Conversation]:
    """An instruction with several examples of it, as in Self-Instruct's seed tasks."""
    instruction = text_of(row, "instruction")
    instances = list_of(row, "instances")
    if not instances:
        raise RowProblem("instances is empty")
    found = []
    for i, instance in enumerate(instances):
        where = f"instances[{i}]"
        if not isinstance(instance, dict):
            raise RowProblem(f"{where} must be an object with input and output")
        prompt = _with_input(instruction, instance.get("input"), f"{where}.input")
        answer = text_of(instance, "output", f"{where}.")
        found.append(Conversation(pair(prompt, answer)))
    return found


def from_text(row: dict[str, Any], unused: set[str]) -> list[Conversation]:
    """A text that is nobody's answer."""
    return [Conversation([], text=text_of(row, "text"))]


def instances_group(row: dict[str, Any]) -> str:
    """The group that all examples of an instruction share."""
    # All examples of an instruction stay on one side: they are variations of one task.
    return "instruction-" + short_hash(" ".join(row["instruction"].split()).casefold())


def turns_of(row: dict[str, Any], column: str, unused: set[str]) -> list[Message]:
    """The messages in a column. Raises: RowProblem."""
    return messages_of(list_of(row, column), column, unused)


def holds_turns(value: object) -> bool:
    """Whether it holds turns; as JSON too, but a text that merely is JSON stays a text."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = parsed(value, "")
        except RowProblem:
            return False
        return isinstance(value, list) and all(
            isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value
        )
    return isinstance(value, list)


def system_of(row: dict[str, Any]) -> str | None:
    """The row's own system prompt, where the format has it as a column; empty means none."""
    value = row.get("system")
    if value is None or value == "":
        return None
    return text_of(row, "system")


def _with_input(instruction: str, given: object, where: str) -> str:
    if given is None or given == "":
        return instruction
    if not isinstance(given, str):
        raise RowProblem(f"{where} must be text")
    check_characters(given, where)
    return f"{instruction}\n\n{given}" if given.strip() else instruction
