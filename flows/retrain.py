"""The pipeline: data goes through five stages in a row, and a sixth decides what goes live."""

from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed

from flows.orderly import NotNow, orderly, refuse_outdated, started_by
from flows.recipe_memory import RecipePath, recipe_of_run
from flows.run_record import PrefectRun, RunRecord
from tasks.dataset.task import compare_with_champion, prepare_dataset, replay_rows
from tasks.errors import Interrupted
from tasks.evaluation.task import evaluate_adapter
from tasks.outage import bridged
from tasks.promotion.task import promote_version
from tasks.registration.task import find_champion, register_adapter, verifier
from tasks.tokenization.task import tokenize_dataset
from tasks.training.task import train_adapter


def _run_name() -> str:
    return Path(str(flow_run.parameters.get("recipe") or "retrain")).stem


@flow(name="retrain", flow_run_name=_run_name, persist_result=False)
def retrain(
    recipe: RecipePath = "",
    overrides: list[str] | None = None,
    force: bool = False,
    reason: str = "",
) -> State[dict[str, Any]]:
    """Retrain the adapter that a recipe describes, and register it if the gate lets it pass.

    Args:
        recipe: Path of the recipe, as the machine that runs the flow sees it. A schedule's run knows its own.
        overrides: Fields to change, for example `training.peft_config.r=8`.
        force: Run every stage again, also those whose outputs are complete.
        reason: Why it is run: what a person writes, or what the data's or a monitor's event tells.

    Returns an `artifacts.Outcome` as a dictionary. A run that finds nothing to do ends as
    `Completed(name="Skipped")`, and so does a scheduled one whose adapter another run trains just now,
    or which a later one catches up for. One that the gate stops ends as `Completed(name="Refused")`,
    an interrupted one as `Cancelled`.
    """
    try:
        recipe = recipe_of_run(recipe)
        refuse_outdated(recipe)
        here = PrefectRun(flow_run.id, flow_run.ui_url, reason)

        def attempt() -> State[dict[str, Any]]:
            return _retrained(Path(recipe), tuple(overrides or ()), force, here)

        if started_by() == "person":
            return attempt()
        # Nobody is there to run it again. What is complete by then is not repeated.
        return bridged(attempt, doing="go on")
    except NotNow as other:
        return other.state
    except Interrupted as stop:
        # Somebody wanted it to end: in Prefect that is no failure, and sets off no alarm.
        return Cancelled(message=str(stop), data=stop)


def _retrained(
    recipe: Path, overrides: tuple[str, ...], force: bool, here: PrefectRun
) -> State[dict[str, Any]]:
    with RunRecord(recipe, overrides, force, here) as run, orderly(run) as turn:
        dataset = run.keep(prepare_dataset(run.store, **run.for_dataset()))
        champion = find_champion(run.tracker, run.recipe.model_name)
        run.begin(dataset, champion)
        if replay := run.for_replay(dataset):
            dataset = run.keep(replay_rows(run.store, **replay))
        tokens = run.keep(tokenize_dataset(run.store, **run.for_tokenization(dataset)))
        if comparison := run.for_comparison(dataset, champion):
            run.drift = compare_with_champion(**comparison)
        adapter = run.keep(train_adapter(run.store, **run.for_training(dataset, tokens)))
        if run.is_done(tokens, adapter):
            return _ended("Skipped", run)
        # Again: another one may have been promoted while this one was trained.
        champion = find_champion(run.tracker, run.recipe.model_name)
        report = run.keep(
            evaluate_adapter(run.store, **run.for_evaluation(tokens, adapter, champion))
        )
        if run.is_refused(report):
            return _ended("Refused", run)
        turn.check()
        version = register_adapter(**run.for_registration(dataset, tokens, adapter, report))
        verify = verifier(run.tracker, run.base.path)
        version, decision = promote_version(**run.for_promotion(version, champion), verify=verify)
        run.close_with(version, decision)
    return _ended("Completed", run)


def _ended(name: str, run: RunRecord) -> State[dict[str, Any]]:
    return Completed(
        name=name, message=run.outcome.reason, data=run.outcome.model_dump(mode="json")
    )
