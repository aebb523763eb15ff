"""Evaluate an adapter: the same test rows for base, champion and challenger, numbers and a verdict."""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from tasks import launch
from tasks.artifacts import Adapter, Report, Tokens
from tasks.base import Base
from tasks.errors import StageFailed
from tasks.evaluation.files import EvaluationFiles, find_files
from tasks.evaluation.job import AnswerJob, AnswerResult, Model
from tasks.evaluation.scoring import RETENTION, TEST, OnEvent, score_predictions, write_output
from tasks.evaluation.seen import unseen_rows
from tasks.evaluation.settings import EvaluationSettings
from tasks.gpu_turn import take_gpus
from tasks.home import Home
from tasks.seen import SeenPolicy
from tasks.store import Store, fingerprint

OUTPUT_VERSION = 5
"""Raise it when the same adapter and rows give another output; a golden test watches."""

_log = logging.getLogger(__name__)


def fingerprint_of(
    settings: EvaluationSettings,
    *,
    adapter_fingerprint: str,
    tokens_fingerprint: str,
    base: Base,
    champion_sha256: str | None,
    seen_by_champion: SeenPolicy = "refuse",
    files: Mapping[str, str] | None = None,
) -> str:
    """The output's key: what was evaluated, on what, against what, and how.

    `files`: sha256 of what the section names, as `EvaluationFiles.digests` has them.
    """
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
            **(files or {}),
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
    recipe_folder: Path | None = None,
    dataset: Path | None = None,
    force: bool = False,
    on_event: OnEvent | None = None,
) -> Report:
    """Publish `predictions.parquet`, `scores.parquet`, `metrics.json`, `report.md` and `summary.md`,
    or find them; `slices.parquet` and `retention.parquet` where the recipe asks for them.

    `champion` is an adapter folder, `champion_sha256` the sha256 of its weights file; both or none.
    `champion_rows` holds the ids of the rows it was trained on; test rows among them are refused or
    dropped for all models alike.
    `recipe_folder` is where relative paths of the section start, `dataset` the dataset's folder, from
    whose test rows slices are made. A model's predictions of an earlier evaluation are reused where
    everything they depend on is equal, unless `force`.
    `on_event` hears the workers' events (`measured`, `generated`, `note`).

    Raises: UserError when an adapter does not fit the base or memory is short; WorkerFailed when a
    process dies; StageFailed when the adapter names no stop token.
    """
    assert (champion is None) == (champion_sha256 is None)
    started = time.monotonic()
    files = find_files(settings, recipe_folder)
    key = fingerprint_of(
        settings,
        adapter_fingerprint=adapter.fingerprint,
        tokens_fingerprint=tokens.fingerprint,
        base=base,
        champion_sha256=champion_sha256,
        seen_by_champion=seen_by_champion,
        files=files.digests,
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
        kept = None if force else home.cache / "predictions"
        answers = _answer(settings, files, rows, adapters, base, folder, work, log, kept, on_event)
        scores = score_predictions(
            settings,
            files,
            [
                model
                for model in ("base", *adapters)
                if model != "champion" or answers.champion_problem is None
            ],
            folder,
            dataset=dataset and dataset / "test.jsonl",
            work=work,
            log=log,
            verdicts=home.cache / "verdicts.jsonl",
            on_event=on_event,
        )
        write_output(
            folder,
            settings,
            answers,
            scores[TEST],
            dataset=_key_of(dataset, store),
            seen_by_champion=dropped,
            retention=scores.get(RETENTION),
        )
        shutil.rmtree(work)

    if force or store.find("evaluation", key) is None:
        # Before the output's lock, in every stage: who has the one never waits for the other.
        take_gpus(1)
    stored = store.publish("evaluation", key, build, force=force)
    return _report(stored.path, key, stored.reused, time.monotonic() - started)


def _key_of(dataset: Path | None, store: Store) -> str | None:
    """The dataset's fingerprint, where its folder is the store's."""
    if dataset is None or store.path("dataset", dataset.name) != dataset:
        return None
    return dataset.name


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
    files: EvaluationFiles,
    rows: Path,
    adapters: dict[Model, Path],
    base: Base,
    folder: Path,
    work: Path,
    log: Path,
    kept: Path | None,
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
        predictions=folder / TEST,
        result=work / "answers" / "result.json",
        base_sha256=base.weights_sha256,
        kept=kept,
        retention=files.retention,
        retention_rows=settings.retention and settings.retention.max_rows,
        retention_predictions=folder / RETENTION,
        embedding_model=files.embedding_model,
        lm_eval=settings.lm_eval,
        lm_eval_tasks=files.lm_eval_tasks,
    )
    launch.run(
        launch.module("tasks.evaluation.worker", str(launch.write_job(work / "answers", job))),
        log=log,
        name="Evaluation",
        on_event=on_event,
        # The harness fetches its tasks' data; nothing else of this process asks the Hub.
        environment={} if settings.lm_eval else {"HF_HUB_OFFLINE": "1"},
        stall_seconds=60 * settings.stall_minutes,
    )
    result = AnswerResult.model_validate_json(job.result.read_text(encoding="utf-8"))
    _log.info(
        "Answered %d rows in %s on %s: %s",
        result.rows,
        result.dtype,
        result.device,
        ", ".join(
            f"{name} {'reused' if name in result.reused else f'{seconds:.1f} s'}"
            for name, seconds in result.seconds.items()
        ),
    )
    return result


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
