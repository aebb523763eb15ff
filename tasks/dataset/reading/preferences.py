"""What a preference says: a conversation and a worse ending of it, or a verdict on its one answer."""

from dataclasses import replace
from typing import Any

from tasks.dataset.reading.conversations import (
    Conversation,
    from_prompt,
    holds_turns,
    system_of,
    turns_of,
)
from tasks.dataset.reading.problem import RowProblem, kind_of, text_of
from tasks.dataset.reading.turn_order import checked
from tasks.dataset.reading.turns import with_system
from tasks.dataset.rows import Message


def from_preference(row: dict[str, Any], unused: set[str]) -> list[Conversation]:
    """A prompt and two answers to it, each text or a list of messages."""
    prompt: list[Message]
    if holds_turns(row["prompt"]):
        prompt = turns_of(row, "prompt", unused)
    else:
        prompt = [{"role": "user", "content": text_of(row, "prompt")}]
    # Some data sets repeat the prompt in front of both answers, with its system prompt or without.
    beginnings = (
        with_system(prompt, system_of(row)),
        prompt,
        [turn for turn in prompt if turn["role"] != "system"],
    )
    endings = []
    for column in ("chosen", "rejected"):
        if holds_turns(row[column]):
            turns = turns_of(row, column, unused)
            repeated = next((it for it in beginnings if turns[: len(it)] == it), [])
            turns = turns[len(repeated) :]
        else:
            turns = [{"role": "assistant", "content": text_of(row, column)}]
        endings.append(turns)
    return [_preference(prompt, *endings)]


def from_two_conversations(row: dict[str, Any], unused: set[str]) -> list[Conversation]:
    """Two whole conversations that part at the answer."""
    chosen, rejected = turns_of(row, "chosen", unused), turns_of(row, "rejected", unused)
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise RowProblem("chosen and rejected begin with different turns: they share no prompt")
    return [_preference(chosen[:shared], chosen[shared:], rejected[shared:])]


def from_judged(row: dict[str, Any], unused: set[str]) -> list[Conversation]:
    """A prompt, one answer to it, and in `label` whether the answer is good."""
    desirable = verdict(row["label"], "label")
    return [replace(one, desirable=desirable) for one in from_prompt(row, unused)]


def says_verdict(row: dict[str, Any]) -> bool:
    """Whether `label` is true or false. A label that is a number or another word is no verdict: it may
    be a class, or a score.
    """
    label = row.get("label")
    return isinstance(label, bool) or (isinstance(label, str) and label.strip().lower() in _WORDS)


def refuse_unread_verdict(row: dict[str, Any], since: str) -> None:
    """Raises: RowProblem when a verdict stands in a source that is read without verdicts."""
    if says_verdict(row):
        raise RowProblem(
            f"label is {row['label']}, a verdict on the answer, and {since} the source is read without "
            "verdicts. Give every row one, or write in the recipe's source `chat_format: "
            "prompt/completion` to train bad answers like good ones"
        )


def verdict(value: object, where: str) -> bool:
    """True for a good answer: a boolean, its name as CSV files have it, or 1 and 0.

    Raises: RowProblem.
    """
    if isinstance(value, bool | int) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and (found := _WORDS.get(value.strip().lower())) is not None:
        return found
    shown = f"{value[:40]!r}" if isinstance(value, str) else kind_of(value)
    raise RowProblem(f"{where} must be true (a good answer) or false, this is {shown}")


_WORDS = {"true": True, "false": False}


def _preference(
    prompt: list[Message], chosen: list[Message], rejected: list[Message]
) -> Conversation:
    if chosen == rejected:
        raise RowProblem("chosen and rejected are the same: there is nothing to prefer")
    if len(chosen) > 1 and len(rejected) == 1:
        # A row keeps the worse ending in place of its last message: it would answer the better one's turns.
        raise RowProblem(
            f"chosen has {len(chosen)} turns where rejected has 1: both must answer the same turn"
        )
    checked([*prompt, *rejected], "prompt + rejected")
    messages = checked([*prompt, *chosen], "prompt + chosen")
    return Conversation(messages, tuple(rejected))
