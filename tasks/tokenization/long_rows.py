"""What becomes of a conversation that is longer than `max_length`: a shorter prompt, or several rows.

Every part goes through the template and the tokenizer again and is verified as any row is: no text
is ever cut after it was rendered, so the template's frame, the system prompt and the answer's end
stay whole.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from tasks.tokenization.chat import Chat
from tasks.tokenization.conversation import Conversation
from tasks.tokenization.rendering import Rendered
from tasks.tokenization.spans import Encoded


class Part(NamedTuple):
    """A conversation that fits."""

    given: Conversation
    rendered: Rendered
    encoded: Encoded


Encode = Callable[[Conversation], Part]
"""Renders and encodes. Raises: Unfit."""


def truncate_prompt(chat: Chat, given: Conversation, encode: Encode, limit: int) -> Part | None:
    """The conversation with a prompt short enough for `limit` tokens in all; None if none is.

    The oldest exchanges go first, each with its answers; system messages stay. When the last exchange
    alone is too long, its user message loses whole tokens from its beginning.

    Raises: Unfit when a shorter conversation cannot be trained on.
    """
    starts = _exchanges(given)
    if not starts:
        return None
    last = _longest_history(given, starts, len(given.messages), encode, limit)
    return last or _cut_user(chat, _from(given, starts[-1]), encode, limit)


def split_turns(given: Conversation, encode: Encode, limit: int) -> tuple[list[Part], int]:
    """Rows that train each answer once, and how many answers fit in none of them.

    The first row is the longest beginning of the conversation that fits. Every later answer has a row
    of its own with as much of the history before it as fits, from the start of an exchange on.

    Raises: Unfit when a part cannot be trained on.
    """
    starts = _exchanges(given)
    parts: list[Part] = []
    beginning, answers = _longest_beginning(given, encode, limit)
    if beginning:
        parts.append(beginning)
    lost = 0
    for k in given.trained[answers:]:
        whole = replace(given, messages=given.messages[: k + 1], trained=(k,))
        before = [start for start in starts if start < k]
        part = _longest_history(whole, before, k + 1, encode, limit) if before else None
        if part:
            parts.append(part)
        else:
            lost += 1
    return parts, lost


def _exchanges(given: Conversation) -> list[int]:
    """Where exchanges begin: at each message of the user that does not follow another of his.

    What stands before the first of them is no exchange's: system messages, or a greeting.
    """
    roles = [message["role"] for message in given.messages]
    return [
        k for k, role in enumerate(roles) if role == "user" and (k == 0 or roles[k - 1] != "user")
    ]


def _from(given: Conversation, start: int) -> Conversation:
    """The conversation from an exchange on, with its system messages."""
    kept = [
        k
        for k, message in enumerate(given.messages)
        if k >= start or message["role"] in ("system", "developer")
    ]
    place = {old: new for new, old in enumerate(kept)}
    return replace(
        given,
        messages=[given.messages[k] for k in kept],
        trained=tuple(place[k] for k in given.trained if k in place),
    )


def _longest_history(
    given: Conversation, starts: list[int], stop: int, encode: Encode, limit: int
) -> Part | None:
    """The part with the most exchanges that fits."""
    parts: dict[int, Part] = {}

    def fits(k: int) -> bool:
        parts[k] = encode(_from(given, starts[k]))
        return len(parts[k].encoded.input_ids) <= limit

    # Fewer exchanges are fewer tokens.
    first = bisect_left(range(len(starts)), True, key=fits)
    return parts[first] if first < len(starts) else None


def _longest_beginning(given: Conversation, encode: Encode, limit: int) -> tuple[Part | None, int]:
    parts: dict[int, Part] = {}

    def too_long(count: int) -> bool:
        last = given.trained[count - 1]
        part = replace(given, messages=given.messages[: last + 1], trained=given.trained[:count])
        parts[count] = encode(part)
        return len(parts[count].encoded.input_ids) > limit

    counts = range(1, len(given.trained) + 1)
    count = bisect_left(counts, True, key=too_long)
    return (parts[count], count) if count else (None, 0)


def _cut_user(chat: Chat, given: Conversation, encode: Encode, limit: int) -> Part | None:
    place = next(k for k, message in enumerate(given.messages) if message["role"] == "user")
    text = given.messages[place]["content"]
    begins = [start for start, _ in chat.tokenizer.encode(text, add_special_tokens=False).offsets]
    gone = 0
    part = encode(given)
    while (excess := len(part.encoded.input_ids) - limit) > 0:
        gone += excess
        if gone >= len(begins) or not (rest := text[begins[gone] :]).strip():
            return None
        messages = list(given.messages)
        messages[place] = {**messages[place], "content": rest}
        part = encode(replace(given, messages=messages))
    return part
