"""Let another model score answers, behind any URL that speaks OpenAI's chat completions."""

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.evaluation.settings import JudgeSettings

BEST = 10
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
LONGEST_VERDICT = 64
"""Tokens that a verdict may have."""

_FORM = (
    '{instruction}\n\nReply with a JSON object and nothing else: {{"score": n}}, where n is a whole '
    "number from 0 (useless) to 10 (as good as can be).\n\n<prompt>\n{prompt}\n</prompt>\n\n"
    "<reference>\n{reference}\n</reference>\n\n<answer>\n{answer}\n</answer>"
)
_SCORE = re.compile(
    r'^\s*(?:```(?:json)?\s*)?\{\s*"score"\s*:\s*(\d{1,2})(?:\.0+)?\s*\}\s*(?:```)?\s*$'
)
_NUMBER = re.compile(r"^\s*(\d{1,2})\s*$")


@dataclass(frozen=True)
class Judged:
    """The judge's verdicts."""

    scores: dict[str, list[float | None]]
    """Model -> each row's score on 0-1; None, for all models alike, where one has no usable verdict."""
    missing: int
    """Rows without."""
    notes: list[str]


def judge_answers(
    settings: JudgeSettings,
    models: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    memory: Path | None,
) -> Judged:
    """Score every model's answer to every row. An empty answer scores 0 without being sent.

    Equal questions are asked once, and never again while `memory` (JSONL) remembers the verdict.

    Raises: UserError when the judge refuses the key or the request, cannot be reached, or leaves more
    rows without a verdict than the recipe allows.
    """
    asked: dict[str, str] = {}
    keys: dict[str, list[str | None]] = {}
    for model in models:
        keys[model] = []
        texts = zip(
            columns["prompt"], columns["reference"], columns[f"{model}_answer"], strict=True
        )
        for prompt, reference, answer in texts:
            if not answer.strip():
                keys[model].append(None)
                continue
            question = _FORM.format(
                instruction=settings.instruction, prompt=prompt, reference=reference, answer=answer
            )
            key = _key(settings, question)
            asked[key] = question
            keys[model].append(key)
    known = _remembered(memory)
    new = {key: question for key, question in asked.items() if key not in known}
    replies = _ask_all(settings, new)
    verdicts = {key: score for key, score in replies.items() if score is not None}
    _remember(memory, verdicts)
    known |= verdicts
    scores: dict[str, list[float | None]] = {
        model: [0.0 if key is None else known.get(key) for key in found]
        for model, found in keys.items()
    }
    rows = len(columns["prompt"])
    lost = [row for row in range(rows) if any(scores[model][row] is None for model in models)]
    if len(lost) > settings.max_missing_share * rows:
        raise UserError(
            f"The judge {settings.model} at {settings.url} gave no usable verdict on {len(lost)} of {rows} "
            f"rows; evaluation.judge.max_missing_share allows {settings.max_missing_share:.0%}. It must "
            'answer with {"score": n}, n from 0 to 10. Try another model or a plainer instruction, or raise '
            "timeout_seconds or retries."
        )
    for row in lost:
        for model in models:
            scores[model][row] = None
    notes = (
        [
            f"The judge gave no usable verdict on {len(lost)} of {rows} rows; these count for no model."
        ]
        if lost
        else []
    )
    return Judged(scores, len(lost), notes)


def score_in(reply: str) -> float | None:
    """The score on 0-1 that a reply gives, or None where it is no verdict."""
    found = _SCORE.match(reply) or _NUMBER.match(reply)
    score = int(found[1]) if found else BEST + 1
    return score / BEST if score <= BEST else None


def _ask_all(settings: JudgeSettings, questions: Mapping[str, str]) -> dict[str, float | None]:
    if not questions:
        return {}
    import httpx

    key = os.environ.get(settings.key_variable)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # Redirects are not followed: the key is for this address alone.
    with (
        httpx.Client(headers=headers, timeout=settings.timeout_seconds) as client,
        ThreadPoolExecutor(settings.parallel) as pool,
    ):
        replies = pool.map(lambda text: _ask(client, settings, text), questions.values())
        return dict(zip(questions, replies, strict=True))


def _ask(client: Any, settings: JudgeSettings, question: str) -> float | None:
    import httpx

    body = {
        "model": settings.model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": LONGEST_VERDICT,
    }
    pause, reason = FIRST_PAUSE_SECONDS, ""
    for attempt in range(settings.retries + 1):
        if attempt:
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        try:
            response = client.post(f"{settings.url.rstrip('/')}/chat/completions", json=body)
        except httpx.TimeoutException:
            reason = "timed out"
            continue
        except httpx.HTTPError as error:
            reason = f"cannot be reached ({type(error).__name__})"
            continue
        if response.status_code in BUSY:
            reason = f"answers with status {response.status_code}"
            pause = max(pause, min(_asked_pause(response), LONGEST_PAUSE_SECONDS))
            continue
        if response.status_code != 200:
            raise UserError(
                f"The judge at {settings.url} refuses the request with status {response.status_code}. "
                f"Look at evaluation.judge: its url, its model ({settings.model}), and whether the "
                f"variable {settings.key_variable} holds a valid key."
            )
        score = score_in(_text(response))
        if score is not None:
            return score
        reason = ""
    if "reached" in reason:
        raise UserError(
            f"The judge at {settings.url} {reason}, {settings.retries + 1} times in a row. Start it, or "
            "correct evaluation.judge.url."
        )
    return None


def _text(response: Any) -> str:
    try:
        return str(response.json()["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError):
        return ""


def _asked_pause(response: Any) -> float:
    try:
        return float(response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0


def _key(settings: JudgeSettings, question: str) -> str:
    return hashlib.sha256(json.dumps([settings.url, settings.model, question]).encode()).hexdigest()


def _remembered(memory: Path | None) -> dict[str, float]:
    if memory is None or not memory.exists():
        return {}
    found: dict[str, float] = {}
    for line in memory.read_text(encoding="utf-8").splitlines():
        try:
            key, score = json.loads(line)
            found[str(key)] = float(score)
        except (ValueError, TypeError):
            # The last line of a process that was killed while it wrote.
            continue
    return found


def _remember(memory: Path | None, verdicts: Mapping[str, float]) -> None:
    if memory is None or not verdicts:
        return
    memory.parent.mkdir(parents=True, exist_ok=True)
    with memory.open("a", encoding="utf-8") as file:
        # A leading end of line: what a killed process left unfinished stays a line of its own.
        file.write("".join(f"\n{json.dumps(verdict)}" for verdict in verdicts.items()) + "\n")
