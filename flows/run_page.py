"""The HTML report of a run, written as far as the run has come; never the reason why a run fails."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from flows.run_facts import RunFacts
from flows.stage_arguments import StageArguments
from tasks.artifacts import Artifact, Dataset, Outcome, Stage
from tasks.registration.task import recipe_commit
from tasks.report.page import write_report
from tasks.report.run import MadeFrom, ReportedRun

_log = logging.getLogger(__name__)
_SHOWN_ANSWERS = 20
"""In the report at least, unless the recipe wants none: half a page of them tells little."""


def write_page(
    facts: RunFacts,
    arguments: StageArguments,
    outputs: Mapping[Stage, Artifact],
    outcome: Outcome,
    run_id: str,
    new_rows_share: float | None,
) -> Path | None:
    """The page's file, whose place is noted in the outcome; None, and a warning, when that fails.

    A trained adapter is worth more than a page about it.
    """
    path = page_of(facts, run_id)
    try:
        write_report(_reported(facts, arguments, outputs, outcome, run_id, new_rows_share), path)
    except Exception:
        _log.warning("This run goes without its HTML report", exc_info=True)
        return None
    outcome.report = str(path)
    return path


def page_of(facts: RunFacts, run_id: str) -> Path:
    """Where the page of an MLflow run lies on the machine that wrote it."""
    return facts.home.reports / run_id / "report.html"


def _reported(
    facts: RunFacts,
    arguments: StageArguments,
    outputs: Mapping[Stage, Artifact],
    outcome: Outcome,
    run_id: str,
    new_rows_share: float | None,
) -> ReportedRun:
    start, version = arguments.beginning.start, outcome.model_version
    dataset = outputs["dataset"]
    assert isinstance(dataset, Dataset)
    answers = facts.recipe.evaluation.sample_answers
    return ReportedRun(
        name=facts.recipe.name,
        written=datetime.now(UTC),
        outcome=outcome,
        made_from=MadeFrom(
            base=facts.base.shown,
            base_sha256=facts.base.weights_sha256,
            recipe=facts.recipe_path.name,
            recipe_text=facts.recipe_text,
            recipe_digest=facts.recipe_digest,
            dataset_digest=dataset.digest,
            git_commit=recipe_commit(facts.recipe_path.parent),
            started_from=None if start is None else start.uri,
            mlflow_run_id=run_id,
            mlflow_url=facts.tracker.run_url(run_id),
            version_url=None
            if version is None
            else facts.tracker.version_url(str(version["name"]), str(version["version"])),
            prefect_url=facts.prefect.url,
        ),
        evaluation=outputs["evaluation"].path,
        training=outputs["training"].path,
        dataset=dataset.path,
        tokenization=outputs["tokenization"].path,
        champion=arguments.compared_with,
        answers=max(answers, _SHOWN_ANSWERS) if answers else 0,
        training_processes=facts.recipe.training.spread.total,
        new_rows_share=new_rows_share,
    )
