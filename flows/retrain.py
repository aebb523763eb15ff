"""The pipeline: data goes through five stages in a row, and a sixth decides what goes live."""

from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Crashed

from flows import run_leases
from flows.block_secrets import secrets_of
from flows.bridging import bridged_run
from flows.orderly import NotNow, orderly, refuse_outdated, repeats
from flows.recipe_form import Override
from flows.recipe_memory import RecipePath, recipe_of_run
from flows.run_alerts import failure_told, tell_refusal
from flows.run_names import first_name, this_cause
from flows.run_record import PrefectRun, RunRecord
from flows.unattended import unattended
from flows.verdict_page import show_verdict
from tasks.dataset.task import compare_with_champion, prepare_dataset, replay_rows
from tasks.errors import Interrupted, Killed
from tasks.evaluation.task import evaluate_adapter
from tasks.home import home
from tasks.promotion.task import promote_version
from tasks.registration.task import find_champion, register_adapter, verifier
from tasks.tokenization.task import tokenize_dataset
from tasks.training.task import train_adapter


@flow(name="retrain", flow_run_name=first_name, persist_result=False)
def retrain(
    recipe: RecipePath = "",
    overrides: list[Override] | None = None,
    force: bool = False,
    reason: str = "",
) -> State[dict[str, Any]]:
    """Retrain the adapter that a recipe describes, and register it if the gate lets it pass.

    Args:
        recipe: Path of the recipe, as the machine that runs the flow sees it. A schedule's run knows its own.
        overrides: Fields to change, for example `training.peft_config.r=8`.
        force: Run every stage again, also those whose outputs are complete; each of them once, also where
            an outage or a crash comes in between.
        reason: Why it is run: what a person writes, or what the data's or a monitor's event tells.

    Returns an `artifacts.Outcome` as a dictionary. A run that finds nothing to do ends as
    `Completed(name="Skipped")`, and so does a scheduled one whose adapter another run trains just now,
    or which a later one catches up for. One that the gate stops ends as `Completed(name="Refused")`,
    an interrupted one as `Cancelled`, and one that nobody watches and whose training was killed as
    `Crashed`: the watchdog starts it once more.
    """
    try:
        run_leases.begin(home())
        with failure_told(recipe):
            recipe = recipe_of_run(recipe)
            refuse_outdated(recipe)
            changes = tuple(overrides or ())
            cause = this_cause(recipe, reason)
            here = PrefectRun(
                *(flow_run.id, flow_run.ui_url, reason, cause, repeats(), flow_run.run_count or 0)
            )

            def attempt() -> State[dict[str, Any]]:
                return _retrained(Path(recipe), changes, force, here)

            with secrets_of(Path(recipe), changes):
                # What is complete by then is not repeated, by force either.
                return bridged_run(attempt, doing="go on")
    except NotNow as other:
        return other.state
    except Interrupted as stop:
        # Somebody wanted it to end: in Prefect that is no failure, and sets off no alarm.
        return Cancelled(message=str(stop), data=stop)
    except Killed as death:
        if unattended() is None:
            # Whoever gave the command reads there what happened: for the watchdog that is no crash.
            raise
        # Nothing of ours is known to be wrong: as when the whole machine dies, the next run goes on.
        return Crashed(message=str(death), data=death)


def _retrained(
    recipe: Path, overrides: tuple[str, ...], force: bool, here: PrefectRun
) -> State[dict[str, Any]]:
    with RunRecord(recipe, overrides, force, here) as run, orderly(run) as turn:
        give = run.arguments
        dataset = run.keep(prepare_dataset(run.store, **give.dataset()))
        champion = find_champion(run.tracker, run.recipe.model_name)
        run.begin(dataset, champion)
        if replay := give.replay(dataset):
            dataset = run.keep(replay_rows(run.store, **replay))
        tokens = run.keep(tokenize_dataset(run.store, **give.tokenization(dataset)))
        if comparison := give.comparison(dataset, champion):
            run.drift = compare_with_champion(**comparison)
        adapter = run.keep(train_adapter(run.store, **give.training(dataset, tokens)))
        if run.is_done(tokens, adapter):
            return _ended("Skipped", run)
        # Again: another one may have been promoted while this one was trained.
        champion = find_champion(run.tracker, run.recipe.model_name)
        judged = give.evaluation(dataset, tokens, adapter, champion)
        report = run.keep(evaluate_adapter(run.store, **judged))
        if run.is_refused(report):
            tell_refusal(run, report)
            if run.keeps_refused:
                kept = give.registration(dataset, tokens, adapter, report, run_id=run.refused_in)
                run.close_refused(register_adapter(**kept))
            return _ended("Refused", run)
        turn.check()
        run_id = run.write_mlflow()
        version = register_adapter(
            **give.registration(dataset, tokens, adapter, report, run_id=run_id)
        )
        verify = verifier(run.tracker, run.base.path)
        version, decision = promote_version(**give.promotion(version, champion), verify=verify)
        run.close_with(version, decision)
    return _ended("Completed", run)


def _ended(name: str, run: RunRecord) -> State[dict[str, Any]]:
    show_verdict(run)
    return Completed(
        name=name, message=run.outcome.reason, data=run.outcome.model_dump(mode="json")
    )
