"""Worker process: base, champion and challenger on the same test rows, loss and greedy answers."""

import time
from collections import Counter
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer

from tasks.cores import available_cores
from tasks.errors import UserError
from tasks.evaluation.answering import NO_LOSS, generate, measure
from tasks.evaluation.job import AnswerJob, AnswerResult
from tasks.evaluation.models import arithmetic, load_base, room, wearing
from tasks.evaluation.rejected import Rejected
from tasks.worker import emit, main, write_result

DESIRABLE = "desirable"


def answer(job: AnswerJob) -> None:
    """Write the predictions and, last, how they came about.

    Columns: `id`, `prompt`, `reference`, `label`, `trained_tokens`; then for each model
    `<model>_answer` (text without special tokens, stripped), `<model>_stopped`, `<model>_tokens`
    (generated, the stop token not counted), `<model>_nll` (nats summed over the trained tokens of
    the reference), `<model>_correct` (of these, how many were the model's first choice). Where rows
    are pairs also `rejected_tokens` and `<model>_rejected_nll`, the same of the worse answer; null in
    rows that are none. Rows whose answer was judged bad are left out.
    """
    torch.set_num_threads(available_cores())
    device, dtype, why = arithmetic(job)
    emit("note", stage="evaluation", message=f"Using {dtype} on {device}: {why}")
    read = pq.read_table(job.rows)
    good = read if DESIRABLE not in read.column_names else read.filter(_no_bad_answer(read))
    table = good.to_pydict()
    count = len(table["id"])
    if not count:
        raise UserError(
            f"None of the {read.num_rows:,} test rows holds a good answer to measure by. Add good answers, "
            "or give the recipe a dataset.holdout with some."
        )
    prompts = [
        ids[:length] for ids, length in zip(table["input_ids"], table["prompt_length"], strict=True)
    ]
    base = load_base(job, device, dtype)
    rooms = [room(base.config, len(prompt), job.max_new_tokens) for prompt in prompts]
    tokenizer = Tokenizer.from_file(str(job.tokenizer))
    columns: dict[str, Any] = {name: table[name] for name in ("id", "prompt", "reference", "label")}
    columns["trained_tokens"] = [
        sum(label != NO_LOSS for label in labels[1:]) for labels in table["labels"]
    ]
    rejected = Rejected.of(table)
    if rejected is not None:
        columns["rejected_tokens"] = rejected.tokens
    seconds: dict[str, float] = {}
    generated: dict[str, int] = {}
    ended_with: dict[str, dict[str, int]] = {}
    for name in ("base", *job.adapters):
        started = time.monotonic()
        with wearing(base, name, job.adapters.get(name)) as model:
            nll, correct = measure(
                model, table["input_ids"], table["labels"], job.batch_size, job.stop_tokens[0], name
            )
            if rejected is not None:
                worse = rejected.measure(model, job.batch_size, job.stop_tokens[0], name)
                columns[f"{name}_rejected_nll"] = worse
            answers = generate(model, prompts, rooms, job.batch_size, job.stop_tokens, name)
        texts = tokenizer.decode_batch([ids for ids, _ in answers], skip_special_tokens=True)
        columns |= {
            f"{name}_answer": [text.strip() for text in texts],
            f"{name}_stopped": [stop is not None for _, stop in answers],
            f"{name}_tokens": [len(ids) for ids, _ in answers],
            f"{name}_nll": nll,
            f"{name}_correct": correct,
        }
        seconds[name] = round(time.monotonic() - started, 3)
        generated[name] = sum(len(ids) for ids, _ in answers)
        ends = Counter(stop for _, stop in answers)
        ended_with[name] = {
            str(tokenizer.id_to_token(stop)): ends[stop] for stop in job.stop_tokens if ends[stop]
        }
    fields = {name: pa.string() for name in ("id", "prompt", "reference", "label")}
    made = [pa.array(values, fields.get(name)) for name, values in columns.items()]
    pq.write_table(pa.table(made, names=list(columns)), job.predictions, compression="zstd")
    result = AnswerResult(
        rows=count,
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        quantization=job.quantization,
        batch_size=job.batch_size,
        max_new_tokens=job.max_new_tokens,
        stop_tokens=job.stop_tokens,
        bad_answers=read.num_rows - count,
        shortened_rows=sum(room < job.max_new_tokens for room in rooms),
        seconds=seconds,
        generated_tokens=generated,
        ended_with=ended_with,
        versions={name: version(name) for name in ("torch", "transformers", "peft")},
    )
    write_result(job.result, result)


def _no_bad_answer(table: pa.Table) -> Any:
    """Whether each row's answer is one to be measured by: a good one, or the better one of a pair."""
    return pc.fill_null(table[DESIRABLE], True)


def _answer_or_explain(job: AnswerJob) -> None:
    try:
        answer(job)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The GPU ran out of memory while evaluating {job.batch_size} rows at a time. Lower "
            f"evaluation.batch_size, or set evaluation.quantization to nf4. ({error})"
        ) from error


if __name__ == "__main__":
    main(AnswerJob, _answer_or_explain)
