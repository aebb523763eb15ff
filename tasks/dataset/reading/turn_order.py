"""Whose turn it is in a conversation, and that something of it is trained."""

from tasks.dataset.reading.problem import RowProblem
from tasks.dataset.rows import Message


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
