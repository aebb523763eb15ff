"""Worker process: every metric from kept predictions, with paired bootstrap intervals. No model."""

import json
import math
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import UserError
from tasks.evaluation.answerers import trivial_answers
from tasks.evaluation.bootstrap import SEED
from tasks.evaluation.catalog import (
    CUSTOM,
    MODULES,
    PAIR_MODULES,
    TEXT_MODULES,
    MetricModule,
    chosen,
    shipped,
)
from tasks.evaluation.comparisons import CONFIDENCE, Comparisons, Statistics
from tasks.evaluation.computing import Found, compute
from tasks.evaluation.gate_evidence import statistics_path, write_statistics
from tasks.evaluation.job import Answerer, ScoreJob, ScoreResult, Slice
from tasks.evaluation.judging import judge_answers
from tasks.evaluation.settings import LOWER_IS_BETTER, NO_DIRECTION
from tasks.worker import emit, main, write_result

PACKAGES = ("evaluate", "rouge-score", "rouge-score-rs", "sacrebleu")


def score(job: ScoreJob) -> None:
    """Read the predictions, write each row's scores and, last, every number.

    Raises: UserError when a metric module of the user's fails, or a judge gives too few verdicts.
    """
    table = pq.read_table(job.predictions)
    columns: dict[str, list[Any]] = table.to_pydict()
    pairs = sum(tokens is not None for tokens in columns.get("rejected_tokens", ()))
    notes: list[str] = []
    missing = 0
    if job.judge is not None:
        judged = judge_answers(job.judge, job.models, columns, job.verdicts)
        columns |= {f"{model}_verdict": scores for model, scores in judged.scores.items()}
        missing = judged.missing
        notes += judged.notes
    modules = chosen(
        job.metrics,
        pairs=bool(pairs),
        schema=job.json_schema is not None,
        embeddings="challenger_similarity" in columns,
        judge=job.judge is not None,
    )
    modules += [MetricModule(f"{CUSTOM}{name}", path) for name, path in job.custom.items()]
    loaded = load_modules(modules)
    more = {"schema_match": {"schema": _schema(job)}} if job.json_schema is not None else {}
    values: dict[str, dict[str, float]] = {}
    rows: dict[str, list[Any]] = {"id": columns["id"]}
    statistics: dict[str, Statistics] = {}
    directions: dict[str, int] = {}
    for model in job.models:
        found = [
            compute(
                module,
                loaded[module.name],
                table.num_rows,
                module.inputs(model, columns) | more.get(module.name, {}),
            )
            for module in modules
        ]
        values[model], statistics[model] = _merge(found)
        for module, one in zip(modules, found, strict=True):
            rows |= {f"{model}_{name}": scores for name, scores in one.rows.items()}
            directions |= {name: _direction(name, loaded[module.name]) for name in one.values}
            notes += one.notes
        emit("scored", stage="evaluation", model=model)
    contestants = dict(statistics)
    answers = trivial_answers(columns["base_answer"], columns["label"])
    for answerer, texts in answers.items():
        theirs = _answerer_statistics(loaded, texts, columns["reference"])
        # Where it has no answer neither it nor the challenger counts.
        known = np.array([text is not None for text in texts], dtype=np.float64)[:, None]
        contestants[answerer] = {name: known * array for name, array in theirs.items()}
        contestants[_opponent(answerer)] = {
            name: known * statistics["challenger"][name] for name in theirs
        }
    comparisons = Comparisons(contestants, job.bootstrap_samples)
    for model in job.models:
        _require_equal(model, values[model], comparisons)
    others = [model for model in job.models if model != "challenger"]
    confidences = sorted({CONFIDENCE, *job.confidences})
    notes = list(dict.fromkeys(notes))
    for note in notes:
        emit("note", stage="evaluation", message=note)
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
        empty_answers={
            model: sum(not text.strip() for text in columns[f"{model}_answer"])
            for model in job.models
        },
        directions=directions,
        slices=_slices(job, statistics, others),
        missing_verdicts=missing,
        notes=notes,
        bootstrap_samples=job.bootstrap_samples,
        bootstrap_seed=SEED,
        metric_modules={module.name: module.sha256 for module in modules},
        versions=_versions(),
    )
    pq.write_table(pa.table(rows), job.scores, compression="zstd")
    write_statistics(statistics_path(job.scores), statistics)
    write_result(job.result, result)


def load_modules(modules: Iterable[MetricModule] | None = None) -> dict[str, Any]:
    """The metric modules (default: the shipped ones that are always there, and those of pairs), loaded
    by path: nothing is asked of the network.

    Raises: UserError when one of the user's own cannot be loaded.
    """
    if modules is None:
        modules = [shipped(name) for name in (*MODULES, *PAIR_MODULES)]
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
    loaded: dict[str, Any] = {}
    for module in modules:
        try:
            loaded[module.name] = evaluate.load(
                str(module.source),
                # Two evaluations on one machine must not meet in a file.
                keep_in_memory=True,
                experiment_id=uuid.uuid4().hex,
            )
        except Exception as error:
            if not module.is_custom:
                raise
            raise UserError(
                f"The metric module {module.source} cannot be loaded: {type(error).__name__}: {error}. "
                "It needs one class that derives from evaluate.Metric; correct it, or take it out of "
                "evaluation.metrics_folder."
            ) from error
    return loaded


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in PACKAGES:
        # rouge-score-rs has no wheel for every machine; rouge-score counts there.
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _schema(job: ScoreJob) -> Any:
    assert job.json_schema is not None
    return json.loads(job.json_schema.read_text(encoding="utf-8"))


def _direction(metric: str, module: Any) -> int:
    if metric.startswith(CUSTOM):
        return {"higher": 1, "lower": -1, "none": 0}[getattr(module, "direction", "higher")]
    return -1 if metric in LOWER_IS_BETTER else 0 if metric in NO_DIRECTION else 1


def _slices(
    job: ScoreJob, statistics: Mapping[str, Statistics], others: Sequence[str]
) -> dict[str, dict[str, Slice]]:
    if job.slices is None:
        return {}
    found: dict[str, dict[str, Slice]] = {}
    for slicing, labels in pq.read_table(job.slices).to_pydict().items():
        found[slicing] = {}
        for label in sorted({label for label in labels if label is not None}):
            here = np.array([other == label for other in labels])
            parts = {
                model: {metric: array[here] for metric, array in metrics.items()}
                for model, metrics in statistics.items()
            }
            comparisons = Comparisons(parts, job.bootstrap_samples)
            found[slicing][label] = Slice(
                rows=int(here.sum()),
                metrics={model: _finite(comparisons.observed(model)) for model in statistics},
                differences={m: comparisons.against("challenger", m) for m in others},
            )
    return found


def _answerer_statistics(
    loaded: Mapping[str, Any], texts: Sequence[str | None], references: Sequence[str]
) -> Statistics:
    inputs = {"predictions": [text or "" for text in texts], "references": list(references)}
    found = [compute(shipped(name), loaded[name], len(texts), inputs) for name in TEXT_MODULES]
    return _merge(found)[1]


def _same_answers(model: str, columns: Mapping[str, list[Any]]) -> int:
    pairs = zip(columns["challenger_answer"], columns[f"{model}_answer"], strict=True)
    return sum(mine == theirs for mine, theirs in pairs)


def _merge(results: Sequence[Found]) -> tuple[dict[str, float], Statistics]:
    values: dict[str, float] = {}
    statistics: Statistics = {}
    for result in results:
        values |= result.values
        statistics |= result.statistics
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


if __name__ == "__main__":
    main(ScoreJob, score)
