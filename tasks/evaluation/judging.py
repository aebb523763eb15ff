"""Let another model score answers, behind any URL that speaks OpenAI's chat completions."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.evaluation.settings import JUDGE_PARAMETERS, JudgeSettings
from tasks.evaluation.verdicts import Verdicts

BEST = 10
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
QUOTED_CHARACTERS = 200
"""Of what the server says when it refuses."""

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

    Equal questions are asked once, and never again while `memory` (JSONL) remembers the verdict, which
    is written down when it arrives: an evaluation that ends in between has lost none.

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
    with Verdicts(memory) as verdicts:
        new = {key: question for key, question in asked.items() if key not in verdicts}
        _ask_all(settings, new, verdicts)
        scores: dict[str, list[float | None]] = {
            model: [0.0 if key is None else verdicts.get(key) for key in found]
            for model, found in keys.items()
        }
    rows = len(columns["prompt"])
    lost = [row for row in range(rows) if any(scores[model][row] is None for model in models)]
    if len(lost) > settings.max_missing_share * rows:
        raise UserError(
            f"The judge {settings.model} at {settings.url} gave no usable verdict on {len(lost)} of {rows} "
            f"rows; evaluation.judge.max_missing_share allows {settings.max_missing_share:.0%}. It must "
            'answer with {"score": n}, n from 0 to 10. Try another model or a plainer instruction, or raise '
            "timeout_seconds or retries; a model that thinks first needs more tokens (`parameters`). The "
            "verdicts that it gave are remembered."
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


def _ask_all(settings: JudgeSettings, questions: Mapping[str, str], verdicts: Verdicts) -> None:
    """Add every verdict that is given. The first refusal ends it: what is not yet asked stays unasked."""
    if not questions:
        return
    import httpx

    secret = os.environ.get(settings.key_variable)
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    given_up = threading.Event()
    # Redirects are not followed: the key is for this address alone.
    with (
        httpx.Client(headers=headers, timeout=settings.timeout_seconds) as client,
        ThreadPoolExecutor(settings.parallel) as pool,
    ):

        def ask(key: str, question: str) -> None:
            try:
                score = _ask(client, settings, question, given_up)
            except BaseException:
                given_up.set()
                raise
            if score is not None:
                verdicts.add(key, score)

        asked = [pool.submit(ask, key, question) for key, question in questions.items()]
        try:
            for one in as_completed(asked):
                one.result()
        finally:
            given_up.set()
            pool.shutdown(cancel_futures=True)


def _ask(
    client: Any, settings: JudgeSettings, question: str, given_up: threading.Event
) -> float | None:
    import httpx

    body = {
        **settings.parameters,
        "model": settings.model,
        "messages": [{"role": "user", "content": question}],
    }
    pause, reason = FIRST_PAUSE_SECONDS, ""
    for attempt in range(settings.retries + 1):
        if attempt:
            given_up.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        if given_up.is_set():
            return None
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
                f"The judge at {settings.url} refuses the request with status {response.status_code}"
                f"{_said(response, settings)}. Look at evaluation.judge: its url, its model "
                f"({settings.model}), whether the variable {settings.key_variable} holds a valid key, and "
                f"whether the model takes the parameters {json.dumps(settings.parameters)}. The verdicts "
                "that it gave until then are remembered: they are not asked for again."
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


def _said(response: Any, settings: JudgeSettings) -> str:
    """The beginning of a refusal, for a person. Some servers repeat the key that they were shown."""
    text = response.text
    if secret := os.environ.get(settings.key_variable):
        text = text.replace(secret, "***")
    shown = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return f" and says: {shown[:QUOTED_CHARACTERS]!r}" if shown else ""


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
    parts: list[Any] = [settings.url, settings.model, question]
    if settings.parameters != JUDGE_PARAMETERS:
        parts.append(settings.parameters)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
