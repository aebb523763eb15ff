"""Worker process: base, champion and challenger on the same test rows, loss and greedy answers."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig

from tasks.errors import UserError
from tasks.evaluation.batches import Batch, batches
from tasks.evaluation.job import AnswerJob, AnswerResult
from tasks.worker import emit, main, write_result

NO_LOSS = -100
LOGITS_AT_ONCE = 64_000_000
"""Logits held at a time while measuring loss (256 MB in fp32), whatever the vocabulary."""


def answer(job: AnswerJob) -> None:
    """Write the predictions and, last, how they came about.

    Columns: `id`, `prompt`, `reference`, `label`, `trained_tokens`; then for each model
    `<model>_answer` (text without special tokens, stripped), `<model>_stopped`, `<model>_tokens`
    (generated, the stop token not counted), `<model>_nll` (nats summed over the trained tokens of
    the reference), `<model>_correct` (of these, how many were the model's first choice).
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device, dtype = _arithmetic(job)
    table = pq.read_table(job.rows).to_pydict()
    count = len(table["id"])
    prompts = [
        ids[:length] for ids, length in zip(table["input_ids"], table["prompt_length"], strict=True)
    ]
    base = load_base(job, device, dtype)
    rooms = [_room(base.config, len(prompt), job.max_new_tokens) for prompt in prompts]
    tokenizer = Tokenizer.from_file(str(job.tokenizer))
    columns: dict[str, Any] = {name: table[name] for name in ("id", "prompt", "reference", "label")}
    columns["trained_tokens"] = [
        sum(label != NO_LOSS for label in labels[1:]) for labels in table["labels"]
    ]
    seconds: dict[str, float] = {}
    generated: dict[str, int] = {}
    for name in ("base", *job.adapters):
        started = time.monotonic()
        with _wearing(base, name, job.adapters.get(name)) as model:
            emit("note", stage="evaluation", message=f"Measuring the loss of the {name}")
            nll, correct = measure(
                model, table["input_ids"], table["labels"], job.batch_size, job.stop_tokens[0]
            )
            answers = generate(model, prompts, rooms, job.batch_size, job.stop_tokens, name)
        texts = tokenizer.decode_batch([ids for ids, _ in answers], skip_special_tokens=True)
        columns |= {
            f"{name}_answer": [text.strip() for text in texts],
            f"{name}_stopped": [stopped for _, stopped in answers],
            f"{name}_tokens": [len(ids) for ids, _ in answers],
            f"{name}_nll": nll,
            f"{name}_correct": correct,
        }
        seconds[name] = round(time.monotonic() - started, 3)
        generated[name] = sum(len(ids) for ids, _ in answers)
    label = pa.field("label", pa.string())
    made = pa.table({name: values for name, values in columns.items() if name != "label"})
    made = made.add_column(3, label, pa.array(columns["label"], pa.string()))
    pq.write_table(made, job.predictions, compression="zstd")
    result = AnswerResult(
        rows=count,
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        quantization=job.quantization,
        batch_size=job.batch_size,
        max_new_tokens=job.max_new_tokens,
        stop_tokens=job.stop_tokens,
        shortened_rows=sum(room < job.max_new_tokens for room in rooms),
        seconds=seconds,
        generated_tokens=generated,
        versions={name: version(name) for name in ("torch", "transformers", "peft")},
    )
    write_result(job.result, result)


def load_base(job: AnswerJob, device: str, dtype: torch.dtype) -> Any:
    """The base in evaluation mode, with no generation settings of its own."""
    options: dict[str, Any] = {}
    if job.quantization != "none":
        options = {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=job.quantization == "nf4",
                load_in_8bit=job.quantization == "int8",
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            ),
            "device_map": {"": device},
        }
    try:
        model = AutoModelForCausalLM.from_pretrained(
            job.base,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **options,
        )
    except ImportError as error:
        raise UserError(
            f"evaluation.quantization is {job.quantization}, which needs bitsandbytes ({error}). "
            'Install it with `pip install "loraline[gpu]"`, or set evaluation.quantization to none.'
        ) from error
    # generate() takes what we leave open from here: a base's repetition penalty or forced tokens
    # would make answers that are not the model's own first choices.
    model.generation_config = GenerationConfig()
    return model.eval() if options else model.to(device).eval()


@torch.inference_mode()
def measure(
    model: Any, rows: list[list[int]], labels: list[list[int]], batch_size: int, padding: int
) -> tuple[list[float], list[int]]:
    """Teacher-forced loss of each row: the sum of -log p over its trained tokens (nats, float64), and
    how many of these tokens were the most likely one.

    A label counts at the position before it, so a first token cannot be trained. Logits are computed
    at trained positions of the batch only.
    """
    nll, correct = [0.0] * len(rows), [0] * len(rows)
    longest = max(sum(label != NO_LOSS for label in row) for row in labels)
    size = LOGITS_AT_ONCE // (model.config.get_text_config().vocab_size * longest)
    for batch in batches(rows, max(1, min(batch_size, size)), padding):
        targets = torch.tensor(
            [
                [NO_LOSS] * (batch.length - len(labels[row])) + [NO_LOSS, *labels[row][1:]]
                for row in batch.rows
            ],
            device=model.device,
        )[:, 1:]
        places = (targets != NO_LOSS).any(dim=0).nonzero().squeeze(1)
        if not len(places):
            continue
        output = model(**_tensors(batch, model.device), use_cache=False, logits_to_keep=places)
        targets = targets[:, places]
        trained = targets != NO_LOSS
        logits, wanted = output.logits[trained].float(), targets[trained]
        losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double()
        hits = (logits.argmax(dim=-1) == wanted).double()
        owners = trained.nonzero()[:, 0]
        totals = torch.zeros(2, len(batch.rows), dtype=torch.float64, device=model.device)
        totals.index_add_(1, owners, torch.stack([losses, hits]))
        for row, loss, right in zip(batch.rows, *totals.tolist(), strict=True):
            nll[row], correct[row] = loss, int(right)
    return nll, correct


@torch.inference_mode()
def generate(
    model: Any,
    prompts: list[list[int]],
    rooms: list[int],
    batch_size: int,
    stop_tokens: list[int],
    name: str,
) -> list[tuple[list[int], bool]]:
    """Greedy answers: token ids up to the first stop token, and whether there was one.

    `rooms` holds each row's longest answer in tokens; no more of it is kept, whatever its batch.
    """
    answers: list[tuple[list[int], bool]] = [([], False)] * len(prompts)
    done = 0
    for batch in batches(prompts, batch_size, padding=stop_tokens[0]):
        tensors = _tensors(batch, model.device)
        output = model.generate(
            input_ids=tensors["input_ids"],
            attention_mask=tensors["attention_mask"],
            generation_config=GenerationConfig(
                do_sample=False,
                num_beams=1,
                max_new_tokens=max(rooms[row] for row in batch.rows),
                eos_token_id=stop_tokens,
                pad_token_id=stop_tokens[0],
            ),
        )
        for row, ids in zip(batch.rows, output[:, batch.length :].tolist(), strict=True):
            answers[row] = _until_stop(ids[: rooms[row]], stop_tokens)
        done += len(batch.rows)
        emit("generated", stage="evaluation", model=name, done=done, total=len(prompts))
    return answers


def _until_stop(ids: list[int], stop_tokens: list[int]) -> tuple[list[int], bool]:
    for place, token in enumerate(ids):
        if token in stop_tokens:
            return ids[:place], True
    return ids, False


@contextmanager
def _wearing(base: Any, name: str, adapter: Path | None) -> Iterator[Any]:
    """The base itself, or with the adapter on it; taken off again afterwards.

    One adapter at a time: champion and challenger may differ in kind, and neither can lean on the
    other's weights.
    """
    if adapter is None:
        yield base
        return
    try:
        model = PeftModel.from_pretrained(base, str(adapter), is_trainable=False).eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(_misfit(name, adapter, str(error))) from error
    # PEFT leaves weights that are missing from the file at their random start, with a warning.
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        saved = set(file.keys())
    odd = sorted((expected - saved) | (saved - expected - set(model.state_dict())))
    if odd:
        raise UserError(_misfit(name, adapter, f"{len(odd)} weights differ in name: {odd[:3]}"))
    try:
        yield model
    finally:
        model.unload()


def _misfit(name: str, adapter: Path, reason: str) -> str:
    return (
        f"The {name} adapter ({adapter}) does not fit the base model: {reason}. It was made for "
        "another base, or its files are damaged. Train on the base it names, or promote another champion."
    )


def _tensors(batch: Batch, device: Any) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor(batch.input_ids, device=device),
        "attention_mask": torch.tensor(batch.attention_mask, device=device),
        "position_ids": torch.tensor(batch.position_ids, device=device),
    }


def _room(config: Any, prompt: int, max_new_tokens: int) -> int:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return max_new_tokens if limit is None else max(1, min(max_new_tokens, limit - prompt))


def _arithmetic(job: AnswerJob) -> tuple[str, torch.dtype]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if job.dtype != "auto":
        dtype, why = getattr(torch, job.dtype), "evaluation.dtype says so"
    elif device == "cpu":
        dtype, why = torch.float32, "on a CPU answers must not depend on the batch"
    elif torch.cuda.is_bf16_supported():
        dtype, why = torch.bfloat16, "the GPU has it"
    else:
        dtype, why = torch.float32, "the GPU has no bfloat16"
    emit("note", stage="evaluation", message=f"Using {dtype} on {device}: {why}")
    return device, dtype


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
