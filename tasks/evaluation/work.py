"""Evaluate an adapter: the same test rows for base, champion and challenger, numbers and a verdict."""

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks import launch
from tasks.artifacts import Adapter, Report, Tokens
from tasks.base import Base
from tasks.errors import StageFailed
from tasks.evaluation.gate import judge
from tasks.evaluation.job import AnswerJob, AnswerResult, Model, ScoreJob, ScoreResult
from tasks.evaluation.report import report, summary
from tasks.evaluation.samples import choose
from tasks.evaluation.seen import unseen_rows
from tasks.evaluation.settings import EvaluationSettings
from tasks.home import Home
from tasks.seen import SeenPolicy
from tasks.store import Store, fingerprint

OUTPUT_VERSION = 3
"""Raise it when the same adapter and rows give another output; a golden test watches."""

OnEvent = Callable[[dict[str, Any]], None]

_log = logging.getLogger(__name__)


def fingerprint_of(
    settings: EvaluationSettings,
    *,
    adapter_fingerprint: str,
    tokens_fingerprint: str,
    base: Base,
    champion_sha256: str | None,
    seen_by_champion: SeenPolicy = "refuse",
) -> str:
    """The output's key: what was evaluated, on what, against what, and how."""
    return fingerprint(
        "evaluation",
        OUTPUT_VERSION,
        # How long a silent worker is waited for decides nothing in the output.
        settings.model_dump(mode="json", exclude={"stall_minutes"}),
        {
            "adapter": adapter_fingerprint,
            "tokens": tokens_fingerprint,
            "base": base.weights_sha256,
            "tokenizer": base.tokenizer_sha256,
            "champion": champion_sha256 or "none",
            **({"seen by champion": seen_by_champion} if champion_sha256 else {}),
        },
    )


def evaluate_adapter(
    store: Store,
    settings: EvaluationSettings,
    *,
    tokens: Tokens,
    adapter: Adapter,
    base: Base,
    champion: Path | None,
    champion_sha256: str | None,
    champion_rows: Path | None = None,
    seen_by_champion: SeenPolicy = "refuse",
    home: Home,
    force: bool = False,
    on_event: OnEvent | None = None,
) -> Report:
    """Publish `predictions.parquet`, `scores.parquet`, `metrics.json`, `report.md` and `summary.md`,
    or find them.

    `champion` is an adapter folder, `champion_sha256` the sha256 of its weights file; both or none.
    `champion_rows` holds the ids of the rows it was trained on; test rows among them are refused or
    dropped for all models alike.
    `on_event` hears the workers' events (`measured`, `generated`, `note`).

    Raises: UserError when an adapter does not fit the base or memory is short; WorkerFailed when a
    process dies; StageFailed when the adapter names no stop token.
    """
    assert (champion is None) == (champion_sha256 is None)
    started = time.monotonic()
    key = fingerprint_of(
        settings,
        adapter_fingerprint=adapter.fingerprint,
        tokens_fingerprint=tokens.fingerprint,
        base=base,
        champion_sha256=champion_sha256,
        seen_by_champion=seen_by_champion,
    )
    adapters: dict[Model, Path] = {"challenger": adapter.folder}
    if champion is not None:
        adapters = {"champion": champion, **adapters}
    work = home.work / f"evaluation-{key[:16]}"
    log = home.logs / f"evaluation-{key[:16]}.log"

    def build(folder: Path) -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        rows, dropped = unseen_rows(
            tokens.path / "test.parquet", champion_rows, seen_by_champion, work
        )
        answers = _answer(settings, rows, adapters, base, folder, work, log, on_event)
        scores = _score(settings, ["base", *adapters], folder, work, log, on_event)
        write_output(folder, settings, answers, scores, seen_by_champion=dropped)
        shutil.rmtree(work)

    stored = store.publish("evaluation", key, build, force=force)
    return _report(stored.path, key, stored.reused, time.monotonic() - started)


def find_report(store: Store, key: str) -> Report | None:
    """The complete report with this fingerprint, or None."""
    started = time.monotonic()
    folder = store.find("evaluation", key)
    return None if folder is None else _report(folder, key, True, time.monotonic() - started)


def _report(folder: Path, key: str, reused: bool, seconds: float) -> Report:
    facts = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return Report(
        path=folder,
        fingerprint=key,
        reused=reused,
        seconds=seconds,
        metrics=facts["metrics"],
        differences=facts["differences"],
        gate=facts["gate"],
    )


def _answer(
    settings: EvaluationSettings,
    rows: Path,
    adapters: dict[Model, Path],
    base: Base,
    folder: Path,
    work: Path,
    log: Path,
    on_event: OnEvent | None,
) -> AnswerResult:
    challenger = adapters["challenger"]
    job = AnswerJob(
        base=base.path,
        adapters=adapters,
        tokenizer=challenger / "tokenizer.json",
        rows=rows,
        stop_tokens=stop_tokens(challenger),
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        quantization=settings.quantization,
        predictions=folder / "predictions.parquet",
        result=work / "answers" / "result.json",
    )
    launch.run(
        launch.module("tasks.evaluation.worker", str(launch.write_job(work / "answers", job))),
        log=log,
        name="Evaluation",
        on_event=on_event,
        environment={"HF_HUB_OFFLINE": "1"},
        stall_seconds=60 * settings.stall_minutes,
    )
    result = AnswerResult.model_validate_json(job.result.read_text(encoding="utf-8"))
    _log.info(
        "Answered %d rows in %s on %s: %s",
        result.rows,
        result.dtype,
        result.device,
        ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items()),
    )
    return result


def _score(
    settings: EvaluationSettings,
    models: list[Model],
    folder: Path,
    work: Path,
    log: Path,
    on_event: OnEvent | None,
) -> ScoreResult:
    job = ScoreJob(
        predictions=folder / "predictions.parquet",
        models=models,
        bootstrap_samples=settings.bootstrap_samples,
        confidences=sorted({r.confidence for r in settings.gate if r.against is not None}),
        scores=folder / "scores.parquet",
        result=work / "scores" / "result.json",
    )
    # `evaluate` copies each metric module into its cache before it imports it. A cache of its own
    # keeps two scorings on one machine apart, and away from modules that others left there.
    cache = work / "cache"
    launch.run(
        launch.module("tasks.evaluation.score_worker", str(launch.write_job(work / "scores", job))),
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
        stall_seconds=60 * settings.stall_minutes,
    )
    return ScoreResult.model_validate_json(job.result.read_text(encoding="utf-8"))


def write_output(
    folder: Path,
    settings: EvaluationSettings,
    answers: AnswerResult,
    scores: ScoreResult,
    *,
    seen_by_champion: int = 0,
) -> None:
    """Write `metrics.json`, `report.md` and `summary.md` beside the predictions and scores."""
    numbers = scores.model_dump(mode="json")
    metrics = {name: numbers["metrics"].get(name) for name in ("base", "champion", "challenger")}
    differences = {name: numbers["differences"].get(name) for name in ("base", "champion")}
    facts = {
        **numbers,
        "metrics": metrics,
        "differences": differences,
        "gate": judge(settings.gate, metrics, numbers["intervals"]),
        "answers": answers.model_dump(mode="json"),
        "seen_by_champion": seen_by_champion,
    }
    models = [name for name, values in metrics.items() if values is not None]
    samples = choose(
        folder / "predictions.parquet", folder / "scores.parquet", models, settings.sample_answers
    )
    text = json.dumps(facts, indent=1, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.md").write_text(report(facts, samples), encoding="utf-8")
    (folder / "summary.md").write_text(summary(facts, samples), encoding="utf-8")


def stop_tokens(adapter: Path) -> list[int]:
    """The ids that end an answer, from the adapter's generation_config.json."""
    path = adapter / "generation_config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["eos_token_id"]
    except (OSError, ValueError, KeyError) as error:
        raise StageFailed(
            f"{path} names no eos_token_id ({error.__class__.__name__}), so no answer could end. "
            "Train the adapter again with `loraline run --force`."
        ) from error
    return [int(found)] if isinstance(found, int) else [int(token) for token in found]
