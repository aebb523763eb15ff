"""The frozen general questions, rendered and tokenized by the base's own chat template."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import AutoTokenizer

from tasks.errors import DataError
from tasks.evaluation.answering import NO_LOSS

SHOWN_MISTAKES = 10


def retention_rows(
    file: Path, tokenizer: Path, stop_tokens: list[int], most: int | None, context: int | None
) -> pa.Table:
    """A table as the tokenization writes it for test rows.

    The answer's tokens and the one that ends its turn carry loss. `context` is the longest row in
    tokens; longer ones are refused.

    Raises: DataError naming every line that is no question with an answer.
    """
    loaded = AutoTokenizer.from_pretrained(
        tokenizer, local_files_only=True, trust_remote_code=False
    )
    rows: list[dict[str, Any]] = []
    mistakes: list[str] = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        if most is not None and len(rows) == most:
            break
        try:
            rows.append(_row(loaded, _messages(json.loads(line)), stop_tokens, context))
        except ValueError as error:
            mistakes.append(f"{file.name}:{number}: {error}")
    if mistakes or not rows:
        more = len(mistakes) - SHOWN_MISTAKES
        listed = mistakes[:SHOWN_MISTAKES] + ([f"and {more} more"] if more > 0 else [])
        raise DataError(
            "evaluation.retention: "
            + ("\n".join(listed) if mistakes else f"{file.name} has no rows.")
        )
    return pa.Table.from_pylist(rows)


def _messages(row: Any) -> list[dict[str, str]]:
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    if "messages" in row:
        messages = row["messages"]
    elif "prompt" in row and "answer" in row:
        messages = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["answer"]},
        ]
    else:
        raise ValueError("it has neither `messages` nor `prompt` and `answer`")
    if (
        not isinstance(messages, list)
        or len(messages) < 2
        or not all(
            isinstance(m, dict) and isinstance(m.get("content"), str) and "role" in m
            for m in messages
        )
        or messages[-1]["role"] != "assistant"
    ):
        raise ValueError("its messages do not end with an assistant's answer to something")
    return messages


def _row(
    tokenizer: Any, messages: list[dict[str, str]], stop_tokens: list[int], context: int | None
) -> dict[str, Any]:
    prompt = _rendered(tokenizer, messages[:-1], opened=True)
    whole = _rendered(tokenizer, messages, opened=False)
    if not whole.startswith(prompt):
        raise ValueError("the chat template renders the answer otherwise than behind its prompt")
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
    ends = [place for place, token in enumerate(answer_ids) if token in stop_tokens]
    if ends:
        # What a template writes behind the end of a turn is nobody's answer.
        answer_ids = answer_ids[: ends[0] + 1]
    if context is not None and len(prompt_ids) + len(answer_ids) > context:
        raise ValueError(
            f"it has {len(prompt_ids) + len(answer_ids):,} tokens, and the model's context {context:,}"
        )
    return {
        "id": hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16],
        "input_ids": prompt_ids + answer_ids,
        "labels": [NO_LOSS] * len(prompt_ids) + answer_ids,
        "prompt_length": len(prompt_ids),
        "reference": messages[-1]["content"],
        "prompt": prompt,
        "label": None,
    }


def _rendered(tokenizer: Any, messages: list[dict[str, str]], *, opened: bool) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
        )
    except Exception as error:  # a template raises what it likes
        raise ValueError(f"the chat template refuses it ({error})") from error
