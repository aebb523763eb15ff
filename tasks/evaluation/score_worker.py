"""Worker process: every metric from kept predictions, with paired bootstrap intervals. No model."""

import hashlib
import math
import sys
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.evaluation.answerers import trivial_answers
from tasks.evaluation.bootstrap import SEED
from tasks.evaluation.comparisons import CONFIDENCE, Comparisons, Statistics
from tasks.evaluation.job import Answerer, ScoreJob, ScoreResult
from tasks.worker import main, write_result

METRICS = Path(__file__).resolve().parent / "metrics"
TEXT_MODULES = ("exact_match", "rouge", "bleu", "chrf")
MODULES = ("loss", *TEXT_MODULES, "stop_rate", "mean_length")
PAIR_MODULES = ("preference",)
"""Computed where rows are pairs of answers."""


def score(job: ScoreJob) -> None:
    """Read the predictions, write each row's scores and, last, every number."""
    table = pq.read_table(job.predictions)
    columns: dict[str, list[Any]] = table.to_pydict()
    pairs = sum(tokens is not None for tokens in columns.get("rejected_tokens", ()))
    names = (*MODULES, *(PAIR_MODULES if pairs else ()))
    modules = load_modules(names)
    values: dict[str, dict[str, float]] = {}
    rows: dict[str, list[Any]] = {"id": columns["id"]}
    statistics: dict[str, Statistics] = {}
    for model in job.models:
        found = [
            _compute(modules[name], table.num_rows, _inputs(name, model, columns)) for name in names
        ]
        values[model], statistics[model] = _merge(found)
        for one in found:
            rows |= {f"{model}_{name}": scores for name, scores in one["rows"].items()}
    answers = trivial_answers(columns["base_answer"], columns["label"])
    for answerer, texts in answers.items():
        theirs = _answerer_statistics(modules, texts, columns["reference"])
        # Where it has no answer neither it nor the challenger counts.
        known = np.array([text is not None for text in texts], dtype=np.float64)[:, None]
        statistics[answerer] = {name: known * array for name, array in theirs.items()}
        statistics[_opponent(answerer)] = {
            name: known * statistics["challenger"][name] for name in theirs
        }
    comparisons = Comparisons(statistics, job.bootstrap_samples)
    for model in job.models:
        _require_equal(model, values[model], comparisons)
    others = [model for model in job.models if model != "challenger"]
    confidences = sorted({CONFIDENCE, *job.confidences})
    result = ScoreResult(
        rows=table.num_rows,
        pairs=pairs,
        metrics={model: _finite(values[model]) for model in job.models},
        differences={model: comparisons.against("challenger", model) for model in others},
        intervals={
            model: comparisons.intervals("challenger", model, confidences) for model in others
        },
        answerers={
            name: Answerer(
                rows=sum(text is not None for text in texts),
                metrics=_finite(comparisons.observed(name)),
                differences=comparisons.against(_opponent(name), name),
            )
            for name, texts in answers.items()
        },
        not_finite=[
            f"{model}.{name}"
            for model in job.models
            for name, value in values[model].items()
            if not math.isfinite(value)
        ],
        same_answers={model: _same_answers(model, columns) for model in others},
        bootstrap_samples=job.bootstrap_samples,
        bootstrap_seed=SEED,
        metric_modules={
            name: hashlib.sha256(_source(name).read_bytes()).hexdigest() for name in names
        },
        versions={name: version(name) for name in ("evaluate", "rouge-score", "sacrebleu")},
    )
    pq.write_table(pa.table(rows), job.scores, compression="zstd")
    write_result(job.result, result)


def load_modules(names: Sequence[str] = (*MODULES, *PAIR_MODULES)) -> dict[str, Any]:
    """The metric modules, loaded by path: nothing is asked of the network."""
    # evaluate imports transformers, and with it torch, for its pipelines, which are not used here.
    # It does without when that import fails, in half the time. Only where nobody has imported it.
    blocked = "transformers" not in sys.modules
    if blocked:
        sys.modules["transformers"] = None  # type: ignore[assignment]
    try:
        import evaluate
    finally:
        if blocked:
            del sys.modules["transformers"]
    return {
        name: evaluate.load(
            str(_source(name).parent),
            # Two evaluations on one machine must not meet in a file.
            keep_in_memory=True,
            experiment_id=uuid.uuid4().hex,
        )
        for name in names
    }


def _inputs(module: str, model: str, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    if module in TEXT_MODULES:
        return {"predictions": columns[f"{model}_answer"], "references": columns["reference"]}
    if module == "loss":
        return {
            "nll": columns[f"{model}_nll"],
            "correct": columns[f"{model}_correct"],
            "trained_tokens": columns["trained_tokens"],
        }
    if module == "preference":
        return {
            "nll": columns[f"{model}_nll"],
            "trained_tokens": columns["trained_tokens"],
            "rejected_nll": columns[f"{model}_rejected_nll"],
            "rejected_tokens": columns["rejected_tokens"],
        }
    name = {"stop_rate": "stopped", "mean_length": "tokens"}[module]
    return {name: columns[f"{model}_{name}"]}


def _answerer_statistics(
    modules: Mapping[str, Any], texts: Sequence[str | None], references: Sequence[str]
) -> Statistics:
    inputs = {"predictions": [text or "" for text in texts], "references": list(references)}
    return _merge([_compute(modules[name], len(texts), inputs) for name in TEXT_MODULES])[1]


def _same_answers(model: str, columns: Mapping[str, list[Any]]) -> int:
    pairs = zip(columns["challenger_answer"], columns[f"{model}_answer"], strict=True)
    return sum(mine == theirs for mine, theirs in pairs)


def _compute(module: Any, count: int, inputs: Mapping[str, list[Any]]) -> dict[str, Any]:
    result: dict[str, Any] = module.compute(**inputs)
    for name, scores in result["rows"].items():
        # A scorer that drops empty answers would inflate the mean of the others.
        if len(scores) != count or len(result["statistics"][name]) != count:
            raise AssertionError(f"{name}: {len(scores)} of {count} rows scored")
    return result


def _merge(results: list[dict[str, Any]]) -> tuple[dict[str, float], Statistics]:
    values: dict[str, float] = {}
    statistics: Statistics = {}
    for result in results:
        for name, rows in result["statistics"].items():
            values[name] = float(result[name])
            statistics[name] = np.asarray(rows, dtype=np.float64)
    return values, statistics


def _require_equal(model: str, values: Mapping[str, float], comparisons: Comparisons) -> None:
    """The module's value and the one that is resampled are computed apart; they must agree."""
    for name, value in comparisons.observed(model).items():
        if not (math.isclose(value, values[name], rel_tol=1e-9, abs_tol=1e-12) or value != value):
            raise AssertionError(f"{model} {name}: module says {values[name]}, sums say {value}")


def _opponent(answerer: str) -> str:
    return f"challenger where {answerer} speaks"


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _source(module: str) -> Path:
    return METRICS / module / f"{module}.py"


if __name__ == "__main__":
    main(ScoreJob, score)
