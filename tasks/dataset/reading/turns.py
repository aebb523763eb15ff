"""One turn of a conversation, whatever the names that a format gives its parts."""

from typing import Any

from tasks.dataset.reading.problem import RowProblem, check_characters, text_of
from tasks.dataset.reading.tools import tool_calls
from tasks.dataset.rows import Message

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Names of roles in the wild (OpenAI, ShareGPT, Gemma) and what they mean."""

_PLAIN = frozenset({"system", "user", "assistant"})
_READ = frozenset({"role", "content", "from", "value"})
_READ_OF = {
    "assistant": _READ | {"weight", "tool_calls", "function_call"},
    "tool": _READ | {"name", "tool_call_id"},
}
"""Role -> the keys of its turns that become part of the row."""
_TRAINED = ("train", "loss", "mask")
"""Keys by which other trainers leave an answer out, where `weight: 0` does here."""
MOST_UNUSED = 50


def messages_of(turns: list[Any], column: str, unused: set[str]) -> list[Message]:
    """A column's turns as messages; `unused` gains the keys that none is made of, as `messages[].train`.

    Raises: RowProblem.
    """
    found = []
    for index, turn in enumerate(turns):
        if type(turn) is dict and len(turn) == 2:
            # Most turns of most files; what is amiss with one is found below.
            role, content = turn.get("role"), turn.get("content")
            if role in _PLAIN and type(content) is str and content.strip():
                check_characters(content, f"{column}[{index}].content")
                found.append({"role": role, "content": content})
                continue
        found.append(_message(turn, f"{column}[{index}]"))
        read = _READ_OF.get(found[-1]["role"], _READ)
        for key, value in turn.items():
            # A table has every turn's keys in every turn, as nulls.
            if key not in read and value not in (None, "", [], {}) and len(unused) < MOST_UNUSED:
                unused.add(f"{column}[].{key}")
    return found


def _message(turn: Any, where: str) -> Message:
    """Role and content, and of an assistant's or a tool's turn what else it needs."""
    if not isinstance(turn, dict):
        raise RowProblem(f"{where} must be an object")
    role_key, text_key = ("from", "value") if turn.get("from") is not None else ("role", "content")
    role = turn.get(role_key)
    if not isinstance(role, str) or role not in ROLES:
        raise RowProblem(f"{where}.{role_key} is {role!r}; known roles: {', '.join(ROLES)}")
    if role == "function_call":
        calls = _written_call(turn, text_key, where)
        return {"role": "assistant", "content": "", "tool_calls": calls}
    role = ROLES[role]
    if role == "user" or role == "system":
        return {"role": role, "content": _content(turn, text_key, where)}
    if role == "tool":
        return _tool_result(turn, text_key, where)
    return _answer(turn, text_key, where)


def with_system(messages: list[Message], system: str | None) -> list[Message]:
    """The conversation with the row's own system prompt in front.

    Raises: RowProblem when the conversation has another one.
    """
    if system is None:
        return messages
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"] != system:
            raise RowProblem(
                "the column system and the system turn of the messages say different things: keep one"
            )
        return messages
    return [{"role": "system", "content": system}, *messages]


def pair(prompt: str, answer: str, system: str | None = None) -> list[Message]:
    """A conversation of one question and one answer."""
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    return [
        *first,
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer},
    ]


def _answer(turn: dict[str, Any], text_key: str, where: str) -> Message:
    for key in _TRAINED:
        # 0 as well, which equals False.
        if key in turn and turn[key] in (False, "false", "False"):
            raise RowProblem(
                f"{where}.{key} is {turn[key]!r}, and is not read: write `weight: 0` for an answer that "
                "is not to be trained"
            )
    result: Message = {"role": "assistant"}
    calls = turn.get("tool_calls")
    if not calls and isinstance(turn.get("function_call"), dict):
        calls = [turn["function_call"]]
    if calls:
        found = tool_calls(calls, f"{where} has tool_calls")
        said = turn.get(text_key)
        # An answer that is a call may say nothing beside it.
        empty = said is None or said == "" or said == []
        result["content"] = "" if empty else _content(turn, text_key, where)
        result["tool_calls"] = found
    else:
        result["content"] = _content(turn, text_key, where)
    weight = turn.get("weight")
    if weight is not None:
        if isinstance(weight, bool) or weight not in (0, 1):
            raise RowProblem(f"{where}.weight is {weight!r}; 0 (not trained) and 1 are known")
        if weight == 0:
            result["weight"] = 0
    return result


def _tool_result(turn: dict[str, Any], text_key: str, where: str) -> Message:
    content = turn.get(text_key)
    if content is None:
        raise RowProblem(f"{where}.{text_key} is null")
    # A tool may well return nothing; an empty result is a result.
    text = content if isinstance(content, str) else _content(turn, text_key, where)
    check_characters(text, f"{where}.{text_key}")
    result: Message = {"role": "tool", "content": text}
    for key in ("name", "tool_call_id"):
        if isinstance(turn.get(key), str):
            check_characters(turn[key], f"{where}.{key}")
            result[key] = turn[key]
    return result


def _written_call(turn: dict[str, Any], text_key: str, where: str) -> list[dict[str, Any]]:
    """ShareGPT's turn of a call: `{"name", "arguments"}`, or a list of them, as JSON text."""
    text = text_of(turn, text_key, f"{where}.")
    wrapped = text if text.lstrip().startswith("[") else f"[{text}]"
    return tool_calls(wrapped, f"{where}.{text_key}")


def _content(turn: dict[str, Any], key: str, where: str) -> str:
    """Text, or OpenAI's list of text parts joined."""
    parts = turn.get(key)
    if isinstance(parts, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
            raise RowProblem(f"{where}.{key} has parts that are not text")
        turn = {key: "".join(text_of(part, "text", f"{where}.{key}[].") for part in parts)}
    return text_of(turn, key, f"{where}.")
