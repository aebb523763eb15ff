"""One turn of a conversation and the order of turns, whatever the names that a format gives them."""

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


def messages_of(turns: list[Any], column: str) -> list[Message]:
    """A column's turns as messages.

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


def checked(messages: list[Message], column: str) -> list[Message]:
    """The messages, if they are in order.

    At most one system turn first, then user and assistant in turn. An assistant turn with tool_calls
    is followed by the tools' results and then by the assistant again; it may be the last turn.

    Raises: RowProblem.
    """
    start = 1 if messages and messages[0]["role"] == "system" else 0
    if len(messages) == start:
        raise RowProblem(f"{column} has no user and no assistant turn")
    due = ("user",)
    called = 0
    for index in range(start, len(messages)):
        turn = messages[index]
        role = turn["role"]
        if role == "tool" and "tool" not in due:
            raise RowProblem(
                f"{column}[{index}].role is 'tool', which must follow an assistant turn with "
                "tool_calls"
            )
        if role not in due:
            wanted = due[0]
            raise RowProblem(f"{column}[{index}] is the {role}'s turn where the {wanted}'s is due")
        if role == "user":
            due = ("assistant",)
        elif role == "assistant":
            called = len(turn.get("tool_calls", ()))
            due = ("tool",) if called else ("user",)
        else:
            called -= 1
            if called < 0:
                raise RowProblem(
                    f"{column}[{index}] answers no call: there are more results than calls"
                )
            due = ("tool",) if called else ("assistant",)
    if messages[-1]["role"] != "assistant":
        raise RowProblem(
            f"{column} ends with the {messages[-1]['role']}'s turn, not with an answer"
        )
    _check_weights(messages, column)
    return messages


def pair(prompt: str, answer: str, system: str | None = None) -> list[Message]:
    """A conversation of one question and one answer."""
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    return [
        *first,
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer},
    ]


def _answer(turn: dict[str, Any], text_key: str, where: str) -> Message:
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


def _check_weights(messages: list[Message], column: str) -> None:
    if not any("weight" in turn for turn in messages):
        return
    answers = [i for i, turn in enumerate(messages) if turn["role"] == "assistant"]
    if all(messages[i].get("weight") == 0 for i in answers):
        others = " and is the only answer" if len(answers) == 1 else ", as every other answer has"
        raise RowProblem(
            f"{column}[{answers[-1]}] has weight 0{others}: nothing of the row would be trained, "
            "take it out"
        )
