"""Score kept predictions in a process of its own, and judge what came of it; no model is loaded."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tasks import launch
from tasks.evaluation.files import EvaluationFiles
from tasks.evaluation.gate import judge
from tasks.evaluation.gate_evidence import (
    Evidence,
    Model,
    Reference,
    RowSet,
    read_statistics,
    statistics_path,
)
from tasks.evaluation.job import AnswerResult, ScoreJob, ScoreResult
from tasks.evaluation.report import report, summary
from tasks.evaluation.settings import EvaluationSettings
from tasks.evaluation.slicing import slice_rows
from tasks.samples import choose

OnEvent = Callable[[dict[str, Any]], None]
TEST, RETENTION = "predictions.parquet", "retention.parquet"
REFERENCES: tuple[Reference, ...] = ("base", "champion")


def score_predictions(
    settings: EvaluationSettings,
    files: EvaluationFiles,
    models: Sequence[Model],
    folder: Path,
    *,
    dataset: Path | None,
    work: Path,
    log: Path,
    verdicts: Path | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, ScoreResult]:
    """Score `folder/predictions.parquet`, and `retention.parquet` where it is: each file's name -> its
    numbers. Rows' scores and statistics are written beside them.

    `dataset` is the `test.jsonl` that slices are read from. `verdicts` remembers those of the judge.

    Raises: UserError for slices by a field that no row has or whose dataset is not here, or a metric
    module that fails.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: dict[str, ScoreResult] = {}
    for name in (TEST, RETENTION):
        if not (folder / name).exists():
            continue
        slices = None
        if settings.slices and name == TEST:
            needed = pq.read_table(folder / name, columns=["id", "prompt_tokens"])
            labels = slice_rows(settings.slices, needed.to_pydict(), dataset)
            slices = folder / "slices.parquet"
            columns = {slicing: pa.array(one, pa.string()) for slicing, one in labels.items()}
            pq.write_table(pa.table(columns), slices, compression="zstd")
        job = ScoreJob(
            predictions=folder / name,
            models=list(models),
            bootstrap_samples=settings.bootstrap_samples,
            confidences=sorted({r.level for r in settings.gate if r.level is not None}),
            scores=scores_path(folder, name),
            result=work / f"scores-{Path(name).stem}" / "result.json",
            metrics=list(settings.metrics),
            json_schema=files.json_schema,
            custom=files.custom,
            slices=slices,
            judge=settings.judge,
            verdicts=verdicts,
        )
        found[name] = _run(job, work, log, 60 * settings.stall_minutes, on_event)
    return found


def scores_path(folder: Path, predictions: str) -> Path:
    """Where the rows' scores of this file of predictions lie."""
    return folder / ("scores.parquet" if predictions == TEST else "retention.scores.parquet")


def write_output(
    folder: Path,
    settings: EvaluationSettings,
    answers: AnswerResult,
    scores: ScoreResult,
    *,
    dataset: str | None = None,
    seen_by_champion: int = 0,
    retention: ScoreResult | None = None,
) -> None:
    """Write `metrics.json`, `report.md` and `summary.md` beside the predictions and scores.

    `dataset` is the fingerprint of the dataset that the rows are of, by which a rescoring finds it.
    """
    numbers = scores.model_dump(mode="json")
    metrics = {name: numbers["metrics"].get(name) for name in ("base", "champion", "challenger")}
    differences = {name: numbers["differences"].get(name) for name in ("base", "champion")}
    models: list[Model] = list(scores.metrics)  # type: ignore[arg-type]
    suites = {} if retention is None else {"retention": retention}
    evidence = Evidence(
        test=_row_set(folder, TEST, models),
        direction=scores.directions,
        suites={name: _row_set(folder, f"{name}.parquet", models) for name in suites},
        same_answers=[
            model for model in REFERENCES if scores.same_answers.get(model) == scores.rows
        ],
        champion_problem=answers.champion_problem,
    )
    facts = {
        **numbers,
        "metrics": metrics,
        "differences": differences,
        "gate": judge(
            settings.gate,
            evidence,
            correction=settings.gate_correction,
            resamples=settings.bootstrap_samples,
        ),
        "answers": answers.model_dump(mode="json"),
        "dataset": dataset,
        "seen_by_champion": seen_by_champion,
        "suites": {
            name: one.model_dump(
                mode="json", include={"rows", "metrics", "differences", "empty_answers", "notes"}
            )
            for name, one in suites.items()
        },
        # What rescoring starts from; how long a silent worker is waited for is no part of it.
        "settings": {
            **settings.model_dump(mode="json", exclude={"stall_minutes"}),
            # A rule refuses fields that do not belong to its claim, also where they say the default.
            "gate": [rule.model_dump(mode="json", exclude_unset=True) for rule in settings.gate],
        },
    }
    samples = choose(folder, models, "base", settings.sample_answers)
    text = json.dumps(facts, indent=1, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.md").write_text(report(facts, samples), encoding="utf-8")
    (folder / "summary.md").write_text(summary(facts, samples), encoding="utf-8")


def _row_set(folder: Path, predictions: str, models: Sequence[Model]) -> RowSet:
    import pyarrow.parquet as pq

    statistics = read_statistics(statistics_path(scores_path(folder, predictions)), models)
    slices = folder / "slices.parquet"
    if predictions != TEST or not slices.exists():
        return RowSet(statistics)
    return RowSet(statistics, slices=pq.read_table(slices).to_pydict())


def _run(
    job: ScoreJob, work: Path, log: Path, stall_seconds: float, on_event: OnEvent | None
) -> ScoreResult:
    # `evaluate` copies each metric module into its cache before it imports it. A cache of its own
    # keeps two scorings on one machine apart, and away from modules that others left there.
    cache = work / "cache"
    launch.run(
        launch.module(
            "tasks.evaluation.score_worker", str(launch.write_job(job.result.parent, job))
        ),
        log=log,
        name="Scoring",
        on_event=on_event,
        environment={
            "HF_HUB_OFFLINE": "1",
            "HF_EVALUATE_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_MODULES_CACHE": str(cache / "modules"),
            "HF_METRICS_CACHE": str(cache / "metrics"),
            "HF_EVALUATE_CACHE": str(cache / "evaluate"),
            "HF_DATASETS_CACHE": str(cache / "datasets"),
        },
        stall_seconds=stall_seconds,
    )
    return ScoreResult.model_validate_json(job.result.read_text(encoding="utf-8"))
