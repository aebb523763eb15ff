"""Worker process: base, champion and challenger on the same rows, loss and greedy answers."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig

from tasks.cores import available_cores
from tasks.errors import UserError
from tasks.evaluation.answering import generate, measure
from tasks.evaluation.harness import Scores, run_harness
from tasks.evaluation.job import AnswerJob, AnswerResult
from tasks.evaluation.kept import KeptPredictions
from tasks.evaluation.meaning import Meaning
from tasks.evaluation.models import AdapterMisfit, arithmetic, load_base, wearing
from tasks.evaluation.questions import Questions
from tasks.evaluation.retention import retention_rows
from tasks.worker import emit, main, write_result

ANSWERS_VERSION = 1
"""Raise it when the same rows and weights give other predictions: kept ones are then left alone."""
PACKAGES = ("torch", "transformers", "peft", "tokenizers")
_TEXTS = ("id", "prompt", "reference", "label")


def answer(job: AnswerJob) -> None:
    """Write the predictions and, last, how they came about.

    Columns: `id`, `prompt`, `reference`, `label`, `prompt_tokens`, `trained_tokens`; then for each model
    `<model>_answer` (text without special tokens, stripped), `<model>_stopped`, `<model>_tokens`
    (generated, the stop token not counted), `<model>_stop` (the id that ended it, or null),
    `<model>_nll` (nats summed over the trained tokens of the reference), `<model>_correct` (of these,
    how many were the model's first choice). Where rows are pairs also `rejected_tokens` and
    `<model>_rejected_nll`, the same of the worse answer; null in rows that are none. With an embedding
    model also `<model>_similarity`. Rows whose answer was judged bad are left out.
    """
    torch.set_num_threads(available_cores())
    device, dtype, why = arithmetic(job)
    emit("note", stage="evaluation", message=f"Using {dtype} on {device}: {why}")
    asking = _Asking(job, device, dtype)
    test = Questions.of(pq.read_table(job.rows))
    columns = asking.ask(test, job.predictions)
    reused = [name for name in asking.reused if name not in asking.seconds]
    seconds = {name: asking.seconds.get(name, 0.0) for name in asking.models}
    general = None
    if job.retention is not None:
        assert job.retention_predictions is not None
        limit = getattr(asking.config.get_text_config(), "max_position_embeddings", None)
        # The base's template, as the tokenization renders the test rows.
        general = Questions.of(
            retention_rows(job.retention, job.base, job.stop_tokens, job.retention_rows, limit)
        )
        asking.ask(general, job.retention_predictions)
    rooms = test.rooms(asking.config, job.max_new_tokens)
    result = AnswerResult(
        rows=len(test),
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        quantization=job.quantization,
        batch_size=job.batch_size,
        max_new_tokens=job.max_new_tokens,
        stop_tokens=job.stop_tokens,
        bad_answers=test.bad_answers,
        shortened_rows=sum(room < job.max_new_tokens for room in rooms),
        seconds=seconds,
        generated_tokens={name: sum(columns[f"{name}_tokens"]) for name in asking.models},
        ended_with={name: asking.ends(columns[f"{name}_stop"]) for name in asking.models},
        versions={name: version(name) for name in PACKAGES},
        prompts_sha256=test.prompts_sha256,
        reused=reused,
        retention_rows=0 if general is None else len(general),
        lm_eval=asking.harness(),
        champion_problem=asking.champion_problem,
    )
    write_result(job.result, result)


class _Asking:
    """Asks every model, one after another on one loaded base; what is known already is not asked again."""

    def __init__(self, job: AnswerJob, device: str, dtype: torch.dtype) -> None:
        self.job = job
        self.models: tuple[str, ...] = ("base", *job.adapters)
        self.champion_problem: str | None = None
        self.config = AutoConfig.from_pretrained(
            job.base, local_files_only=True, trust_remote_code=False
        )
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []
        self._device, self._dtype = device, dtype
        self._tokenizer = Tokenizer.from_file(str(job.tokenizer))
        self._kept = KeptPredictions(job.kept if job.base_sha256 else None)
        self._loaded: Any = None
        self._meaning: Meaning | None = None

    def ask(self, questions: Questions, predictions: Path) -> dict[str, list[Any]]:
        """All models' answers to these rows, written to `predictions` too."""
        columns = questions.columns()
        for name in self.models:
            facts = self._facts(questions, name)
            found = self._kept.find(facts, len(questions))
            if found is None:
                started = time.monotonic()
                try:
                    with self._wearing(name) as model:
                        found = self._answers(model, name, questions)
                except AdapterMisfit as error:
                    if name != "champion":
                        raise
                    # The gate tells it, and refuses: nothing replaces a champion that was not measured.
                    self.champion_problem = str(error)
                    self.models = tuple(one for one in self.models if one != name)
                    # PEFT changes the base before it finds out: the others are asked on a fresh one.
                    self._loaded = None
                    emit("note", stage="evaluation", message=str(error))
                    continue
                taken = time.monotonic() - started
                self.seconds[name] = round(self.seconds.get(name, 0.0) + taken, 3)
                self._kept.keep(facts, found)
            else:
                self.reused.append(name)
                emit(
                    "note",
                    stage="evaluation",
                    message=f"Reusing the {name}'s answers: everything they depend on is equal",
                )
            if self.job.embedding_model is not None:
                found = found | {"similarity": self._similarity(found["answer"], questions)}
            columns |= {f"{name}_{column}": values for column, values in found.items()}
        types = dict.fromkeys(_TEXTS, pa.string())
        types |= {f"{name}_stop": pa.int64() for name in self.models}
        made = [pa.array(values, types.get(name)) for name, values in columns.items()]
        pq.write_table(pa.table(made, names=list(columns)), predictions, compression="zstd")
        return columns

    def harness(self) -> dict[str, Scores] | None:
        """What every model makes of the harness's tasks; None where the recipe names none."""
        asked, found = self.job.lm_eval, {}
        if asked is None:
            return None
        for name in self.models:
            emit(
                "note",
                stage="evaluation",
                message=f"Harness tasks on the {name}: {', '.join(asked.tasks)}",
            )
            with self._wearing(name) as model:
                found[name] = run_harness(
                    model,
                    self.job.base,
                    asked.tasks,
                    include=self.job.lm_eval_tasks,
                    limit=asked.limit,
                    batch_size=self.job.batch_size,
                    device=self._device,
                )
        return found

    def ends(self, stops: list[int | None]) -> dict[str, int]:
        """Stop token -> how many answers it ended."""
        counts = Counter(stops)
        return {
            str(self._tokenizer.id_to_token(stop)): counts[stop]
            for stop in self.job.stop_tokens
            if counts[stop]
        }

    @contextmanager
    def _wearing(self, name: str) -> Iterator[Any]:
        if self._loaded is None:
            self._loaded = load_base(self.job, self._device, self._dtype)
        with wearing(self._loaded, name, self.job.adapters.get(name)) as model:  # type: ignore[call-overload]
            yield model

    def _answers(self, model: Any, name: str, questions: Questions) -> dict[str, list[Any]]:
        job, table = self.job, questions.table
        nll, correct = measure(
            model, table["input_ids"], table["labels"], job.batch_size, job.stop_tokens[0], name
        )
        found: dict[str, list[Any]] = {}
        if (rejected := questions.rejected) is not None:
            found["rejected_nll"] = rejected.measure(
                model, job.batch_size, job.stop_tokens[0], name
            )
        rooms = questions.rooms(self.config, job.max_new_tokens)
        answers = generate(model, questions.prompts, rooms, job.batch_size, job.stop_tokens, name)
        texts = self._tokenizer.decode_batch([ids for ids, _ in answers], skip_special_tokens=True)
        return found | {
            "answer": [text.strip() for text in texts],
            "stopped": [stop is not None for _, stop in answers],
            "tokens": [len(ids) for ids, _ in answers],
            "stop": [stop for _, stop in answers],
            "nll": nll,
            "correct": correct,
        }

    def _facts(self, questions: Questions, name: str) -> dict[str, Any]:
        """Everything that one model's predictions of these rows depend on."""
        job = self.job
        adapter = job.adapters.get(name)  # type: ignore[call-overload]
        cuda = torch.cuda.get_device_name() if self._device == "cuda" else ""
        return {
            "version": ANSWERS_VERSION,
            "rows": questions.sha256,
            "prompts": questions.prompts_sha256,
            "decoding": {"greedy": True, "longest": job.max_new_tokens, "stop": job.stop_tokens},
            "batch_size": job.batch_size,
            "dtype": str(self._dtype),
            "quantization": job.quantization,
            "device": f"{self._device} {cuda}".strip(),
            "base": job.base_sha256,
            "base_config": _sha256(job.base / "config.json"),
            "adapter": None if adapter is None else _adapter_sha256(adapter),
            "tokenizer": _sha256(job.tokenizer),
            "template": _sha256(job.base / "chat_template.jinja"),
            "versions": {package: version(package) for package in PACKAGES},
        }

    def _similarity(self, answers: list[str], questions: Questions) -> list[float]:
        assert self.job.embedding_model is not None
        if self._meaning is None:
            self._meaning = Meaning(self.job.embedding_model, self._device)
        return self._meaning.similarity(answers, questions.table["reference"])


def _adapter_sha256(folder: Path) -> str:
    # The weights alone do not tell alpha.
    files = ("adapter_config.json", "adapter_model.safetensors")
    return hashlib.sha256("".join(_sha256(folder / name) for name in files).encode()).hexdigest()


def _sha256(path: Path) -> str:
    if not path.is_file():
        return "none"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
