"""Answer prompts with a registered version: rows checked first, then a worker process, torch only there."""

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import launch
from tasks.errors import DataError, UserError
from tasks.home import Home
from tasks.registration.job import Answer, PredictJob, Request
from tasks.registration.named import check_registered, registered_files
from tasks.registration.process import run_worker
from tasks.tracking import Tracker

SHOWN_MISTAKES = 20
REQUEST_KEYS = ("messages", "max_tokens", "temperature", "top_p", "seed")


def model_uri(text: str) -> str:
    """`NAME` -> `models:/NAME@champion`; `models:/NAME@ALIAS` and `models:/NAME/VERSION` as they are.

    Raises: UserError for anything else.
    """
    if text.startswith("models:/"):
        rest = text.removeprefix("models:/")
        if (
            rest
            and not rest.startswith("/")
            and ("@" in rest or "/" in rest or rest.startswith("m-"))
        ):
            return text
    elif text and not any(sign in text for sign in ":/@"):
        return f"models:/{text}@champion"
    raise UserError(
        f"{text!r} names no model version. Write NAME (its champion), models:/NAME@ALIAS or "
        "models:/NAME/VERSION; `loraline versions` lists what there is."
    )


@dataclass(frozen=True)
class Row:
    """A row to answer."""

    place: str
    """Where it stands: `rows.jsonl:7`."""
    values: dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file, each with `prompt` (text) or `messages` (a list).

    Raises: DataError naming every bad row (the first twenty) with its line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    rows: list[Row] = []
    mistakes: list[str] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(Row(f"{path}:{number}", _values(line)))
        except ValueError as error:
            mistakes.append(f"{path}:{number}: {error}")
    if mistakes:
        more = len(mistakes) - SHOWN_MISTAKES
        shown = mistakes[:SHOWN_MISTAKES] + ([f"and {more} more"] if more > 0 else [])
        raise DataError("\n".join(shown))
    if not rows:
        raise DataError(f"{path} has no rows.")
    return rows


def answer_rows(
    rows: Sequence[Row],
    *,
    tracker: Tracker,
    uri: str,
    base: Path | None,
    home: Home,
    max_tokens: int | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> list[Answer]:
    """One answer for each row, in order.

    Raises: UserError when there is no such version, its base is not found, or a row cannot be
    answered; StageFailed when MLflow cannot deliver it or its files are not those that were registered;
    WorkerFailed when the process dies.
    """
    check_registered(tracker, uri)
    # The rows may be confidential: they do not stay behind, whatever happens.
    with registered_files(tracker, uri) as (model, _), home.scratch("predict") as folder:
        job = PredictJob(
            model_uri=uri,
            model=model,
            base=base,
            requests=folder / "requests.jsonl",
            answers=folder / "answers.jsonl",
        )
        job.requests.write_text("".join(_request_lines(rows, max_tokens)), encoding="utf-8")
        run_worker(
            "tasks.registration.predict_worker",
            launch.write_job(folder, job),
            tracker=tracker,
            home=home,
            log=home.logs / "predict.log",
            name=f"Prediction with {uri}",
            on_event=on_event,
        )
        lines = job.answers.read_text(encoding="utf-8").splitlines()
    return [Answer.model_validate_json(line) for line in lines]


def write_rows(path: Path, rows: Sequence[Row], answers: Sequence[Answer]) -> None:
    """Write each row with `answer` and `finish_reason` added: as Parquet where `path` ends so, else as JSONL.

    The file appears complete or not at all.

    Raises: UserError when it cannot be written, or when rows differ in a column's type, which Parquet
    does not take.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    lines = (
        {**row.values, "answer": answer.answer, "finish_reason": answer.finish_reason}
        for row, answer in zip(rows, answers, strict=True)
    )
    try:
        if path.suffix == ".parquet":
            _write_parquet(temporary, list(lines))
        else:
            with temporary.open("w", encoding="utf-8") as file:
                for line in lines:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_parquet(path: Path, lines: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Of rows that differ in their keys, `from_pylist` would take the first one's.
    names = list(dict.fromkeys(name for line in lines for name in line))
    try:
        columns = {name: pa.array([line.get(name) for line in lines]) for name in names}
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(
            f"The rows do not fit into a Parquet file: a column has values of several types ({error}). "
            "Write them as .jsonl, or give the column one type."
        ) from error
    pq.write_table(pa.table(columns), path)


def _request_lines(rows: Sequence[Row], max_tokens: int | None) -> Iterator[str]:
    for row in rows:
        given = row.values
        request = {key: given[key] for key in REQUEST_KEYS if given.get(key) is not None}
        if "messages" not in request:
            request["messages"] = [{"role": "user", "content": given["prompt"]}]
        if max_tokens is not None:
            request["max_tokens"] = max_tokens
        yield Request(place=row.place, request=request).model_dump_json() + "\n"


def _values(line: bytes) -> dict[str, Any]:
    """A row, or a ValueError with the reason in words."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, column {error.colno})") from error
    if not isinstance(row, dict):
        raise ValueError("not an object")
    prompt, messages = row.get("prompt"), row.get("messages")
    if (prompt is None) == (messages is None):
        raise ValueError(
            f"needs either `prompt` or `messages`; it has {', '.join(sorted(row)) or 'no keys'}"
        )
    if prompt is not None and (not isinstance(prompt, str) or not prompt.strip()):
        raise ValueError("`prompt` must be a text that is not empty")
    if messages is not None:
        _check_messages(messages)
    for key, kinds in (
        ("max_tokens", int),
        ("temperature", int | float),
        ("top_p", int | float),
        ("seed", int),
    ):
        value = row.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise ValueError(f"`{key}` must be a number")
    return row


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise ValueError("`messages` must be a list that is not empty")
    for position, message in enumerate(messages, start=1):
        fields = message if isinstance(message, dict) else {}
        if not isinstance(fields.get("role"), str) or not isinstance(fields.get("content"), str):
            raise ValueError(f"message {position} must have `role` and `content`, both texts")
    if messages[-1]["role"] == "assistant":
        raise ValueError("the last message is the assistant's; there is nothing left to answer")
